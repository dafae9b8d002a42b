"""LoRA files as diffusers reads them, and plain factors: module path -> (lora_A (r, in), lora_B (out, r)), of a
convolution (r, in, k, k) and (out, r, 1, 1).
"""

from pathlib import Path

import torch
from torch.nn import functional as F

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.files import read_safetensors, write_safetensors

FILE = "pytorch_lora_weights.safetensors"
Pair = tuple[torch.Tensor, torch.Tensor]
Factors = dict[str, Pair]


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


def flat(pair: Pair) -> Pair:
    """Factors as matrices, A (r, in) and B (out, r): a linear layer's as they are, a convolution's flattened."""
    a, b = pair
    return a.flatten(1), b.flatten(1)


def update_of(pair: Pair) -> torch.Tensor:
    """The update B A of a layer's weight, as a matrix (out, in)."""
    a, b = flat(pair)
    return b @ a


def shaped_as(pair: Pair, like: Pair) -> Pair:
    """Flat factors of any rank in the shape of `like`'s: (r, in, k, k) and (out, r, 1, 1) for a convolution."""
    (a, b), (shape_a, shape_b) = pair, (factor.shape for factor in like)
    return a.reshape(-1, *shape_a[1:]), b.reshape(shape_b[0], -1, *shape_b[2:])


def truncate(update: torch.Tensor, rank: int) -> Pair:
    """Best rank-`rank` factors of an update (out, in), singular values shared evenly; zeros where it has fewer."""
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    root = s[:rank].sqrt()
    rest = rank - len(root)
    return F.pad(root[:, None] * v[:rank], (0, 0, 0, rest)), F.pad(u[:, :rank] * root, (0, rest))


def cut(pair: Pair, rank: int) -> Pair:
    """The same of an update that is in factors (R, in), (out, R) already: no matrix (out, in) is made or decomposed."""
    a, b = pair
    (left, upper), (right, lower) = torch.linalg.qr(b), torch.linalg.qr(a.T)
    inner_a, inner_b = truncate(upper @ lower.T, rank)
    return inner_a @ right.T, left @ inner_b


def energy_of(pair: Pair) -> float:
    """The squared norm of lora_B lora_A, which is not computed for it."""
    a, b = (factor.double() for factor in flat(pair))
    return ((b.T @ b) * (a @ a.T)).sum().item()
