"""Fusion in closed form: the one update that does what each expert does on the inputs of its own category, and nothing
on harmless ones, as near as least squares come.

MACE's fusion of erasing LoRAs (arXiv 2403.06135), for every adapted layer as in RegMean (arXiv 2212.09849):

    U = (sum_i D_i C_i) (sum_i C_i + w C_r + p m I)^-1

minimises sum_i |(U - D_i) x|^2 over inputs x of category i, plus w |U x|^2 over those of harmless prompts, plus
p m |U|^2. D_i = B_i A_i is expert i's update; C_i the mean of x x^T over the category's inputs, C_r over the retain
set's; m the mean of the diagonal of what it is added to. An input is a token of a calibration prompt at a timestep, of
a convolution a place, in the frozen model. No matrix (out, in) is needed: U = B A with B = [B_1 ... B_n] and
A = [A_1 C_1; ...; A_n C_n] (...)^-1.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from safetydpo.errors import SafetyDPOError
from safetydpo.merging.coactivation import watching
from safetydpo.models.lora import Factors
from safetydpo.storage.files import read_safetensors, write_safetensors
from safetydpo.storage.finite import finite

RETAIN = "retain"
# Of a layer. own: A_i C_i of all experts, (n * r, in); all: sum_i C_i, (in, in); retain: C_r, (in, in) or not there.
Covariances = dict[str, torch.Tensor]


def rows_of(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a layer's weight, flattened to (out, in), is multiplied with: x (n, ..., in) -> (rows, in); of a convolution
    the patches of x (n, c, h, w), (rows, c * k * k).
    """
    if not isinstance(layer, nn.Conv2d):
        return x.reshape(-1, x.shape[-1])
    patches: Any = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    return patches.mT.flatten(0, 1)


class Gathering:
    """Covariances of every adapted layer, summed while the frozen network runs: 4 in^2 bytes a layer, 8 with harmless
    prompts, whatever the number of experts and inputs.
    """

    def __init__(self, network: nn.Module, experts: dict[str, Factors], modules: list[str]) -> None:
        self.network, self.modules, self.names = network, modules, list(experts)
        self.factors = {module: {name: experts[name][module][0].flatten(1) for name in experts} for module in modules}
        self.found: dict[str, Covariances] = {module: {} for module in modules}

    def gather(self, name: str, runs: Iterable[Any]) -> None:
        """Add the inputs of one category, or of the retain set, seen while `runs` is gone through."""
        sums: dict[str, Covariances] = {}
        counts = dict.fromkeys(self.modules, 0)

        def take(module: str, layer: nn.Module, x: torch.Tensor) -> None:
            rows = rows_of(layer, x)
            parts = {"all": rows.T @ rows}
            if name != RETAIN:
                parts["own"] = (rows @ self.factors[module][name].to(rows).T).T @ rows
            before = sums.get(module)
            sums[module] = {key: before[key] + part for key, part in parts.items()} if before else parts
            counts[module] += len(rows)

        with watching(self.network, self.modules, take):
            for _ in runs:
                pass
        for module, parts in sums.items():
            found, mean = self.found[module], {key: part.cpu() / counts[module] for key, part in parts.items()}
            finite(mean["all"], f"The inputs of {module}", "check model.id: the model's own weights may be damaged")
            if name == RETAIN:
                found[RETAIN] = mean["all"]
            else:
                found["all"] = found["all"] + mean["all"] if "all" in found else mean["all"]
                found["own"] = torch.cat([found["own"], mean["own"]]) if "own" in found else mean["own"]


def save_covariances(found: dict[str, Covariances], out: Path | str, header: dict[str, str]) -> None:
    """Covariances of all layers into a safetensors file."""
    tensors = {f"{module}/{key}": part for module, parts in found.items() for key, part in parts.items()}
    write_safetensors(tensors, out, {"format": "pt", **header})


def read_covariances(path: Path | str, names: list[str]) -> dict[str, Covariances]:
    """Those of a file; SafetyDPOError where they are of other experts than `names`, or in another order."""
    tensors, header = read_safetensors(path)
    if (made := json.loads(header["safetydpo"])["experts"]) != names:
        raise SafetyDPOError(
            f"{path} is of the experts {', '.join(made)} in this order: delete it and rerun snakemake."
        )
    found: dict[str, Covariances] = {}
    for key, tensor in tensors.items():
        module, part = key.rsplit("/", 1)
        found.setdefault(module, {})[part] = tensor
    return found


def fuse(b: torch.Tensor, found: Covariances, retain_weight: float, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact factors A (n r, in), B (out, n r) of U. b: the experts' B side by side, (out, n r)."""
    total = found["all"].double()
    if retain_weight:
        total = total + retain_weight * found[RETAIN].double()
    total = total + ridge * total.diagonal().mean() * torch.eye(len(total), dtype=total.dtype)
    return torch.linalg.solve(total, found["own"].double(), left=False).to(b), b
