"""LoRA files as diffusers reads them, and as plain factors: module path -> (lora_A (r, in), lora_B (out, r))."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.files import read_safetensors, write_safetensors

FILE = "pytorch_lora_weights.safetensors"
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def save_factors(factors: Factors, folder: Path | str, header: dict[str, str]) -> None:
    """Write factors with alpha = rank (any other scaling must be folded into lora_B before)."""
    tensors = {}
    for module, (a, b) in sorted(factors.items()):
        tensors[f"unet.{module}.lora_A.weight"] = a.float()
        tensors[f"unet.{module}.lora_B.weight"] = b.float()
    write_safetensors(tensors, Path(folder) / FILE, {"format": "pt", **header})


def load_factors(folder: Path | str) -> Factors:
    """Read factors; SafetyDPOError when the file is missing, damaged or not a UNet LoRA."""
    path = Path(folder) / FILE
    tensors, _ = read_safetensors(path)
    modules = sorted({k.removeprefix("unet.").rsplit(".lora_", 1)[0] for k in tensors if ".lora_" in k})
    try:
        return {m: (tensors[f"unet.{m}.lora_A.weight"], tensors[f"unet.{m}.lora_B.weight"]) for m in modules}
    except KeyError as error:
        raise SafetyDPOError(f"{path} is not a UNet LoRA in diffusers' layout: it has no {error}.") from None


def same_modules(experts: dict[str, Factors]) -> list[str]:
    """The modules that all experts adapt; SafetyDPOError naming the first that is missing or of another shape."""
    names = list(experts)
    first = experts[names[0]]
    for name in names[1:]:
        other = experts[name]
        shapes = {m for m in set(first) & set(other) if [t.shape for t in first[m]] != [t.shape for t in other[m]]}
        odd = sorted((set(first) ^ set(other)) | shapes)
        if odd:
            raise SafetyDPOError(
                f"Experts {names[0]} and {name} differ in architecture, first at {odd[0]}: train them alike."
            )
    return sorted(first)


def misfit(unet: nn.Module, file: Path) -> str:
    """The first key of a LoRA file that has no place in the UNet, and why; "" where all do.

    Keys of other naming than diffusers' are not looked at.
    """
    with safe_open(file, framework="pt") as tensors:
        for key in sorted(tensors.keys()):
            name, _, part = key.removeprefix("unet.").partition(".lora")
            if not key.startswith("unet.") or not part.endswith(".weight"):
                continue
            try:
                weight: Any = unet.get_submodule(name).weight
            except AttributeError:
                return f"{key}: the model has no {name}"
            side = 1 if part in ("_A.weight", ".down.weight") else 0
            has = tensors.get_slice(key).get_shape()[side]
            if has != weight.shape[side]:
                return f"{key} is for {has} {('outputs', 'inputs')[side]}, the model has {weight.shape[side]}"
    return ""
