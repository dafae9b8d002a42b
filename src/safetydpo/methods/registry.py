"""What can render: the registry of methods, free of torch. `opening` makes the pipeline of a method."""

import json
from pathlib import Path
from typing import NamedTuple

from safetydpo.errors import SafetyDPOError

# base-reseed is the base model on other seeds: the yardstick for distances between image sets.
RESEED = 1_000_003
SLD_PRESETS = ("weak", "medium", "strong", "max")
ERASERS = ("esd-u", "esd-x", "uce")
LORA_FILE, UNET_FILE = "pytorch_lora_weights.safetensors", "unet.safetensors"


class Method(NamedTuple):
    """How a method renders: by what kind of pipeline, from which file of the run, whether its LoRA scale is tuned."""

    kind: str
    weights: str | None = None
    tuned: bool = False
    seed_offset: int = 0
    variant: str = ""


def method_of(name: str) -> Method:
    """The method of that name; SafetyDPOError lists what there is."""
    match name.partition("-"):
        case ("base", "", ""):
            return Method("base")
        case ("base", "-", "reseed"):
            return Method("base", seed_offset=RESEED)
        case ("all", "-", "single"):
            return Method("lora", f"experts/all-single/{LORA_FILE}", tuned=True)
        case ("expert", "-", category) if category:
            return Method("lora", f"experts/{category}/{LORA_FILE}")
        case ("merged", "-", strategy) if strategy:
            return Method("lora", f"merged/{strategy}/{LORA_FILE}", tuned=True)
        case ("ablation", "-", variant) if variant:
            return Method("lora", f"ablation/{variant}/co-merge/{LORA_FILE}", tuned=True)
        case ("negative", "-", "prompt"):
            return Method("negative-prompt")
        case ("sld", "-", preset) if preset in SLD_PRESETS:
            return Method("sld", variant=preset)
        case ("external", "-", other) if other:
            return Method("external", variant=other)
    if name in ERASERS:
        return Method("unet", f"baselines/{name}/{UNET_FILE}", variant=name)
    raise SafetyDPOError(
        f"No method {name}: there are base, base-reseed, all-single, expert-<category>, merged-<strategy>, "
        f"negative-prompt, sld-<{'|'.join(SLD_PRESETS)}>, {', '.join(ERASERS)}, external-<name>."
    )


def read_scale(path: Path | str | None) -> float:
    """The LoRA scale that tuning chose; 1 for methods that are not tuned."""
    return float(json.loads(Path(path).read_text())["scale"]) if path else 1.0
