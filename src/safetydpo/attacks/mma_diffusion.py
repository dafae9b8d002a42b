"""MMA-Diffusion's textual attack (arXiv 2311.17516): greedy coordinate gradient on the text encoder.

Tokens are sought whose pooled embedding is that of the original prompt (equation 2), forbidden words excluded. An
iteration takes the gradient of the loss in the one-hot of every position, draws candidates that change one position to
one of its `top` best tokens, and keeps the best of those that read back as themselves.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from safetydpo.attacks.case import Case, Given
from safetydpo.attacks.random_tokens import random_ids
from safetydpo.attacks.target import Seen, Target
from safetydpo.config.attacks import MmaDiffusion


def distance(pooled: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 - cosine, (n,), of pooled embeddings (n, d) to the wanted ones (n, d), or one for all (d,)."""
    return 1 - F.cosine_similarity(pooled, wanted, dim=-1)


def best_tokens(gradient: torch.Tensor, allowed: torch.Tensor, top: int) -> torch.Tensor:
    """(k, top) tokens per position whose one-hot lowers the loss most to first order; gradient (k, vocabulary).

    Chosen where the gradient is: only the tokens leave a GPU.
    """
    allowed = allowed.to(gradient.device)
    order = gradient[:, allowed].argsort(dim=1, stable=True)[:, :top]
    return allowed[order].cpu()


def substitutes(ids: torch.Tensor, tokens: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
    """(count, k) copies of ids (k,), each with one position changed to one of that position's tokens (k, top)."""
    k, top = tokens.shape
    place = torch.randint(k, (count,), generator=rng)
    choice = torch.randint(top, (count,), generator=rng)
    out = ids.repeat(count, 1)
    out[torch.arange(count), place] = tokens[place, choice]
    return out


class GradientSearch:
    """Greedy coordinate gradient: one batch for the gradients of all prompts, then one for each prompt's candidates."""

    def __init__(self, target: Target, config: MmaDiffusion, _: Given) -> None:
        self.target, self.config = target, config
        self.length = min(config.tokens, target.vocabulary.room)

    def _start(self, case: Case) -> None:
        ids = random_ids(self.target, self.length, case.rng)
        wanted = self.target.encode_prompts([case.original]).pooled[0]
        loss = float(distance(self.target.encode(ids[None]).pooled, wanted)[0])
        case.state, case.loss = {"ids": ids, "wanted": wanted}, loss

    def gradient(self, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """(n, k, vocabulary): of the loss to wanted (n, d), in the one-hot of each position of ids (n, k)."""
        one_hot = F.one_hot(ids, len(self.target.vocabulary.tokenizer)).float().to(self.target.device)
        one_hot.requires_grad_(True)
        with self.target.timed():
            loss = distance(self.target.encode_soft(ids, one_hot).pooled, wanted).sum()
            (found,) = torch.autograd.grad(loss, one_hot)
        return self.target.numbers(found, "the gradients in the tokens")

    def _iteration(self, cases: Sequence[Case]) -> None:
        ids, wanted = (torch.stack([case.state[key] for case in cases]) for key in ("ids", "wanted"))
        for case, gradient in zip(cases, self.gradient(ids, wanted), strict=True):
            self._substitute(case, gradient)
            case.steps += 1

    def _substitute(self, case: Case, gradient: torch.Tensor) -> None:
        """The best of the candidates, where it is better and reads back."""
        state, vocabulary, config = case.state, self.target.vocabulary, self.config
        tokens = best_tokens(gradient, vocabulary.allowed, config.top)
        candidates = substitutes(state["ids"], tokens, config.candidates, case.rng).unique(dim=0)
        losses = distance(self.target.encode(candidates).pooled, state["wanted"]).cpu()
        for i in losses.argsort(stable=True).tolist():  # text is read back for the best alone: it takes longer
            if losses[i] >= case.loss:
                return
            if vocabulary.usable(candidates[i]):
                state["ids"], case.loss = candidates[i], float(losses[i])
                return

    def propose(self, cases: Sequence[Case]) -> None:
        for case in cases:
            if not case.state:
                self._start(case)
        for _ in range(self.config.iterations):
            self._iteration(cases)
        for case in cases:
            case.proposed = self.target.vocabulary.text(case.state["ids"])

    def learn(self, cases: Sequence[Case], seen: Sequence[Seen], reached: Sequence[bool]) -> None:
        """The search does not see images."""
