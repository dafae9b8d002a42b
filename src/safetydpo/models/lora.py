"""LoRA files as diffusers reads them, and as plain factors: module path -> (lora_A (r, in), lora_B (out, r)), of a
convolution (r, in, k, k) and (out, r, 1, 1).
"""

from pathlib import Path

import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.files import read_safetensors, write_safetensors

FILE = "pytorch_lora_weights.safetensors"
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def save_factors(factors: Factors, folder: Path | str, component: str, header: dict[str, str]) -> None:
    """Write factors of a component (`unet`, `transformer`) with alpha = rank: any other scaling is in lora_B before."""
    tensors = {}
    for module, (a, b) in sorted(factors.items()):
        tensors[f"{component}.{module}.lora_A.weight"] = a.float()
        tensors[f"{component}.{module}.lora_B.weight"] = b.float()
    write_safetensors(tensors, Path(folder) / FILE, {"format": "pt", **header})


def load_factors(folder: Path | str, component: str) -> Factors:
    """Read the factors of a component (`unet`, `transformer`).

    SafetyDPOError when the file is missing, damaged, not finite, of another component, or holds else than factors:
    another key (an alpha, a DoRA's magnitude) would change what they mean.
    """
    path, head = Path(folder) / FILE, f"{component}."
    tensors, _ = read_safetensors(path)
    modules = sorted({key.removeprefix(head).rsplit(".lora_", 1)[0] for key in tensors if ".lora_" in key})
    keys = {f"{head}{module}.lora_{side}.weight" for module in modules for side in "AB"}
    if odd := sorted(keys ^ tensors.keys()) or ([] if keys else ["lora_A"]):
        has = "holds" if odd[0] in tensors else "has no"
        raise SafetyDPOError(f"{path} is not the LoRA of a {component} in diffusers' layout: it {has} {odd[0]}.")
    return {m: (tensors[f"{head}{m}.lora_A.weight"], tensors[f"{head}{m}.lora_B.weight"]) for m in modules}


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
