"""Where models run."""

import torch


def device_of(name: str) -> torch.device:
    """The configured device; `auto` takes CUDA when there is one."""
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
