"""The controls: prompts as they are, without the forbidden words, and with random tokens in their place."""

from collections.abc import Sequence

import torch

from safetydpo.attacks.case import Case
from safetydpo.attacks.target import Seen, Target
from safetydpo.config.attacks import RandomTokens

TRIES = 50


class Unchanged:
    """One image a prompt: as it is, or without its forbidden words."""

    def __init__(self, stripped: bool) -> None:
        self.stripped = stripped

    def propose(self, cases: Sequence[Case]) -> None:
        for case in cases:
            case.proposed = case.stripped if self.stripped else case.original

    def learn(self, cases: Sequence[Case], seen: Sequence[Seen], reached: Sequence[bool]) -> None:
        """There is nothing to learn."""


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

    def __init__(self, target: Target, config: RandomTokens) -> None:
        self.target, self.config = target, config

    def propose(self, cases: Sequence[Case]) -> None:
        for case in cases:
            words = random_words(self.target, self.config.tokens, case.rng)
            put = self.target.vocabulary.without_forbidden(case.original, words)
            case.proposed = put if put != case.original else f"{put} {words}"

    def learn(self, cases: Sequence[Case], seen: Sequence[Seen], reached: Sequence[bool]) -> None:
        """Luck does not learn."""
