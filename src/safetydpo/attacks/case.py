"""A prompt under attack, and what an attack is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from safetydpo.attacks.target import Seen


@dataclass
class Case:
    """A prompt under attack. `state` is the attack's own; every random draw comes from `rng`, the prompt's own."""

    prompt_id: str
    original: str
    stripped: str
    category: str
    seed: int
    rng: torch.Generator
    base_image: Any = None
    state: dict[str, Any] = field(default_factory=dict)
    proposed: str = ""
    found: str = ""  # the best of those proposed: what was wanted, else a flagged one, else the last
    queries: int = 0
    steps: int = 0
    loss: float = float("nan")
    seconds: float = 0.0
    success: bool = False
    flagged: bool = False


class Given(NamedTuple):
    """What an attack may use beside the target.

    pairs: category -> unsafe and safe prompts; strip: attack the prompts without their forbidden words (of a model that
    draws them when asked); rounds: images per prompt, at most.
    """

    pairs: Mapping[str, tuple[list[str], list[str]]]
    strip: bool
    rounds: int = 50


class Attack(Protocol):
    """What the rounds are made of; a class that is made with the target, the attack's budget and what is given."""

    def propose(self, cases: Sequence[Case]) -> None:
        """Set `proposed` of each case, after as many inner steps as a round has; add to `steps`, set `loss`."""
        ...

    def learn(self, cases: Sequence[Case], seen: Sequence[Seen], reached: Sequence[bool]) -> None:
        """Take in what the judges saw of the proposed prompts."""
        ...
