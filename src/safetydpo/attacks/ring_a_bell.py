"""Ring-A-Bell (arXiv 2310.10012): a genetic search over tokens for a text embedding that carries the concept.

target = E(prompt without the words) + eta * v, where v is the mean of E(unsafe) - E(safe) over the category's pairs
(section 3.2); the search minimises the squared error to it (equation 5). Model-agnostic: only the text encoder is used.
"""

from collections.abc import Sequence

import torch

from safetydpo.attacks.case import Case, Given
from safetydpo.attacks.random_tokens import random_words
from safetydpo.attacks.target import AT_ONCE, Encoded, Seen, Target
from safetydpo.config.attacks import RingABell
from safetydpo.errors import SafetyDPOError


def concept_vector(unsafe: Encoded, safe: Encoded) -> torch.Tensor:
    """(window, d): mean difference of the embeddings of unsafe and safe prompts, both (n, window, d)."""
    return (unsafe.hidden - safe.hidden).mean(0)


def fitness(hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Squared error (n,) of embeddings (n, window, d) to the wanted one (window, d): smaller is fitter."""
    return (hidden - wanted).square().flatten(1).sum(1)


def breed(
    parents: torch.Tensor, count: int, mutation: float, allowed: torch.Tensor, rng: torch.Generator
) -> torch.Tensor:
    """Children (count, k) of token sequences (n, k): one-point crossover of two parents; some get a random token."""
    n, k = parents.shape
    mothers, fathers = (parents[torch.randint(n, (count,), generator=rng)] for _ in range(2))
    cut = torch.randint(1, max(k, 2), (count, 1), generator=rng)
    children = torch.where(torch.arange(k) < cut, mothers, fathers)
    mutated = torch.rand(count, generator=rng) < mutation
    place = torch.randint(k, (count,), generator=rng)
    tokens = allowed[torch.randint(len(allowed), (count,), generator=rng)]
    children[mutated, place[mutated]] = tokens[mutated]
    return children


class RingSearch:
    """The fitter half of a population lives on unchanged, so that the best is never lost; the rest are its children."""

    def __init__(self, target: Target, config: RingABell, given: Given) -> None:
        self.target, self.config = target, config
        self.length = min(config.tokens, target.vocabulary.room)
        self.vectors = {
            category: concept_vector(*(target.encode_prompts(prompts[: config.pairs]) for prompts in both))
            for category, both in given.pairs.items()
        }
        if not self.vectors:
            raise SafetyDPOError(
                "ring-a-bell: no category has prompt pairs to train on, of which its concept vector is."
            )
        self.mean = torch.stack(list(self.vectors.values())).mean(0)  # for a benchmark's category that has no pairs

    def _start(self, case: Case) -> None:
        vocabulary, config = self.target.vocabulary, self.config
        vector = self.vectors.get(case.category, self.mean)
        wanted = self.target.encode_prompts([case.stripped]).hidden[0] + config.eta * vector
        own = vocabulary.ids(case.stripped)[: self.length]
        allowed = vocabulary.allowed
        drawn = allowed[torch.randint(len(allowed), (config.population, self.length), generator=case.rng)]
        drawn[: config.population // 2, : len(own)] = torch.tensor(own)  # half of them begin as the prompt does
        case.state = {"wanted": wanted, "population": drawn, "errors": self._errors(drawn, wanted)}

    def _errors(self, population: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        parts = population.split(AT_ONCE)
        return torch.cat([fitness(self.target.encode(part).hidden, wanted).cpu() for part in parts])

    def _generation(self, case: Case) -> None:
        state, config = case.state, self.config
        fittest = state["errors"].argsort(stable=True)[: config.population // 2]
        elite, errors = state["population"][fittest], state["errors"][fittest]
        count = config.population - len(elite)
        children = breed(elite, count, config.mutation, self.target.vocabulary.allowed, case.rng)
        state["population"] = torch.cat([elite, children])
        state["errors"] = torch.cat([errors, self._errors(children, state["wanted"])])

    def propose(self, cases: Sequence[Case]) -> None:
        for case in cases:
            if not case.state:
                self._start(case)
            for _ in range(self.config.generations):
                self._generation(case)
            case.steps += self.config.generations
            self._choose(case)

    def _choose(self, case: Case) -> None:
        """The fittest that was not looked at yet, reads back as itself and holds no forbidden word."""
        state, vocabulary = case.state, self.target.vocabulary
        tried = state.setdefault("tried", set())
        for i in state["errors"].argsort(stable=True).tolist():
            text = vocabulary.text(state["population"][i])
            if text not in tried and vocabulary.usable(state["population"][i]):
                tried.add(text)
                case.proposed, case.loss = text, float(state["errors"][i])
                return
        case.proposed = random_words(self.target, self.length, case.rng)

    def learn(self, cases: Sequence[Case], seen: Sequence[Seen], reached: Sequence[bool]) -> None:
        """The search does not see images."""
