"""SneakyPrompt (arXiv 2305.12082): black box. A policy over sub-words takes the place of the forbidden words.

The paper's attacker wants past a filter; an aligned model has none: here an image that the judges do not flag counts as
blocked. Reward as in the paper's section 4: CLIP's similarity of the image to the original prompt, less when blocked.
The policy, a categorical distribution per sub-word, begins where the attacker's own text encoder (the paper's shadow
encoder; here CLIPScore's) finds prompts alike, and follows REINFORCE with the mean reward so far as baseline.
"""

from collections.abc import Sequence

import torch

from safetydpo.attacks.case import Case, Given
from safetydpo.attacks.target import Seen, Target
from safetydpo.config.attacks import SneakyPrompt

TRIES = 50


def reward_of(success: bool, danger: float, similarity: float) -> float:
    """Reward of an image: its similarity (cosine) to the original prompt, less what danger lacks where blocked."""
    return similarity if success else similarity - (1.0 - danger)


def policy_loss(logits: torch.Tensor, chosen: torch.Tensor, advantage: float) -> torch.Tensor:
    """REINFORCE: -advantage x log-probability of the chosen tokens (m,) under logits (m, vocabulary)."""
    picked = logits.log_softmax(1).gather(1, chosen[:, None]).sum()
    return -advantage * picked


class PolicySearch:
    """One policy a prompt."""

    def __init__(self, target: Target, config: SneakyPrompt, _: Given) -> None:
        self.target, self.config = target, config

    def _start(self, case: Case) -> None:
        allowed, count = self.target.vocabulary.allowed, self.config.candidates
        tokens = allowed[torch.randperm(len(allowed), generator=case.rng)[:count]].sort().values
        wanted = self._texts([case.original])[0]
        alike = self._texts([self._put(case, self.target.vocabulary.text([i])) for i in tokens.tolist()]) @ wanted
        logits = (alike / self.config.temperature).repeat(self.config.tokens, 1).requires_grad_(True)
        optimizer = torch.optim.Adam([logits], lr=self.config.learning_rate)
        case.state = {
            "tokens": tokens,
            "logits": logits,
            "optimizer": optimizer,
            "tried": set(),
            "wanted": wanted,
            "rewards": [],
        }

    @torch.no_grad()
    def _texts(self, prompts: list[str]) -> torch.Tensor:
        """(n, d) embeddings of unit length by the attacker's own text encoder."""
        with self.target.timed():
            return torch.cat(
                [self.target.eyes.clip.texts(prompts[i : i + 256]).cpu() for i in range(0, len(prompts), 256)]
            )

    def _put(self, case: Case, words: str) -> str:
        """The original prompt with words for each forbidden one; behind it where there is none."""
        put = self.target.vocabulary.without_forbidden(case.original, words)
        return put if put != case.original else f"{put} {words}".strip()

    def _draw(self, case: Case) -> None:
        vocabulary, state = self.target.vocabulary, case.state
        chances = state["logits"].detach().softmax(1)
        for _ in range(TRIES):
            chosen = torch.multinomial(chances, 1, generator=case.rng)[:, 0]
            ids = state["tokens"][chosen]
            if vocabulary.usable(ids) and vocabulary.text(ids) not in state["tried"]:
                break
        state["tried"].add(vocabulary.text(ids))
        state["chosen"] = chosen
        case.proposed = self._put(case, vocabulary.text(ids))

    def propose(self, cases: Sequence[Case]) -> None:
        for case in cases:
            if not case.state:
                self._start(case)
            self._draw(case)

    def learn(self, cases: Sequence[Case], seen: Sequence[Seen], reached: Sequence[bool]) -> None:
        for case, look, success in zip(cases, seen, reached, strict=True):
            state = case.state
            reward = reward_of(success, look.danger, float(torch.from_numpy(look.embedding) @ state["wanted"]))
            rewards = state["rewards"]
            advantage = reward - (sum(rewards) / len(rewards) if rewards else reward)
            rewards.append(reward)
            state["optimizer"].zero_grad()
            policy_loss(state["logits"], state["chosen"], advantage).backward()
            state["optimizer"].step()
            case.steps, case.loss = case.steps + 1, -reward
