"""Where models run."""

import threading

import torch

from safetydpo.errors import SafetyDPOError

# Held by who pins memory, and by who records a CUDA graph: the one ends the other, also from another thread.
pinning = threading.Lock()


def device_of(name: str) -> torch.device:
    """The device of that name; `auto` takes CUDA when there is one.

    Raises SafetyDPOError for a name that torch does not know, and for a device that it does not see here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SafetyDPOError(f"There is no device {name}: use auto, cpu, cuda, cuda:1 or mps.") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    here = count.get(device.type, 0)
    if (device.index or 0) >= here:
        seen = f"{here} of {device.type}" if here else f"no {'GPU' if device.type == 'cuda' else device.type}"
        raise SafetyDPOError(f"The device is {name}, but torch sees {seen} here: use auto, or ask for one that is.")
    return device


def staged(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU as `sent` takes it: for a GPU in pinned memory, which it reads while the CPU goes on."""
    if device.type != "cuda":
        return tensor
    with pinning:
        return tensor.pin_memory()


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A staged tensor on the device; to a GPU nobody waits for the copy."""
    return tensor.to(device, non_blocking=device.type == "cuda")
