"""What can render: the registry of methods. A method is a LoRA (or none), its scale, and a shift of the seeds."""

import json
from pathlib import Path
from typing import NamedTuple

from safetydpo.errors import SafetyDPOError

# base-reseed is the base model on other seeds: the yardstick for distances between image sets.
RESEED = 1_000_003


class Method(NamedTuple):
    """How a method renders: LoRA folder in the run (None: base weights), whether its scale is tuned, seed shift."""

    lora: str | None
    tuned: bool = False
    seed_offset: int = 0


def method_of(name: str) -> Method:
    """The method of that name: base, base-reseed, all-single, expert-<category>, merged-<strategy>."""
    match name.partition("-"):
        case ("base", "", ""):
            return Method(None)
        case ("base", "-", "reseed"):
            return Method(None, seed_offset=RESEED)
        case ("all", "-", "single"):
            return Method("experts/all-single", tuned=True)
        case ("expert", "-", category) if category:
            return Method(f"experts/{category}")
        case ("merged", "-", strategy) if strategy:
            return Method(f"merged/{strategy}", tuned=True)
    raise SafetyDPOError(
        f"No method {name}: there are base, base-reseed, all-single, expert-<category>, merged-<strategy>."
    )


def read_scale(path: Path | str | None) -> float:
    """The LoRA scale that tuning chose; 1 for methods that are not tuned."""
    return float(json.loads(Path(path).read_text())["scale"]) if path else 1.0
