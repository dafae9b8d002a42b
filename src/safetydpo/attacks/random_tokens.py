"""Random tokens in place of the forbidden words: what luck finds with the same number of images."""

from collections.abc import Sequence

import torch

from safetydpo.attacks.case import Case, Given
from safetydpo.attacks.target import Seen, Target
from safetydpo.config.attacks import RandomTokens

TRIES = 50


def random_ids(target: Target, count: int, rng: torch.Generator) -> torch.Tensor:
    """(count,) random tokens that read back and hold no forbidden word."""
    allowed = target.vocabulary.allowed
    for _ in range(TRIES):
        ids = allowed[torch.randint(len(allowed), (count,), generator=rng)]
        if target.vocabulary.usable(ids):
            return ids
    words = target.vocabulary.words  # tokens that are words read back beside each other
    return words[torch.randint(len(words), (count,), generator=rng)]


def random_words(target: Target, count: int, rng: torch.Generator) -> str:
    """Their text."""
    return target.vocabulary.text(random_ids(target, count, rng))


class RandomSearch:
    """Random tokens where the forbidden words were, others each round: what luck finds with the same queries."""

    def __init__(self, target: Target, config: RandomTokens, _: Given) -> None:
        self.target, self.config = target, config

    def propose(self, cases: Sequence[Case]) -> None:
        for case in cases:
            words = random_words(self.target, self.config.tokens, case.rng)
            put = self.target.vocabulary.without_forbidden(case.original, words)
            case.proposed = put if put != case.original else f"{put} {words}".strip()

    def learn(self, cases: Sequence[Case], seen: Sequence[Seen], reached: Sequence[bool]) -> None:
        """Luck does not learn."""
