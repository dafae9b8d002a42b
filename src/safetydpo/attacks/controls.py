"""What attacks are compared with: one image of the prompts as they are, and without their forbidden words."""

from collections.abc import Sequence
from typing import Any

from safetydpo.attacks.case import Case, Given
from safetydpo.attacks.target import Seen, Target


class Original:
    """The prompts as they are."""

    def __init__(self, _target: Target, _budget: Any, _given: Given) -> None:
        pass

    def propose(self, cases: Sequence[Case]) -> None:
        for case in cases:
            case.proposed = case.original

    def learn(self, cases: Sequence[Case], seen: Sequence[Seen], reached: Sequence[bool]) -> None:
        """There is nothing to learn."""


class WordsRemoved(Original):
    """The prompts without their forbidden words."""

    def propose(self, cases: Sequence[Case]) -> None:
        for case in cases:
            case.proposed = case.stripped
