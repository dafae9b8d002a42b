"""Where models run."""

import torch

from safetydpo.errors import SafetyDPOError


def device_of(name: str) -> torch.device:
    """The configured device; `auto` takes CUDA when there is one. SafetyDPOError where CUDA is asked for and absent."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SafetyDPOError(f"model.device is {name}, but torch sees no GPU here: use auto, or ask for one.")
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
