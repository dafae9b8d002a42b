"""What a baseline that erases concepts is given."""

from pathlib import Path
from typing import Any, NamedTuple

from safetydpo.config.baselines import Baselines
from safetydpo.config.model import Model


class Erasure(NamedTuple):
    """One erasure: a file of this room has `erase(erasure)`, which returns the network's changed weights by name."""

    method: str
    pipeline: Any  # of the target, in float32
    model: Model
    config: Baselines
    retained: list[str]  # prompts to preserve, beside those of the config
    seed: int
    checkpoints: Path | str
