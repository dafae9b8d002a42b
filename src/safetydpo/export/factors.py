"""What a method changes in the network, as LoRA factors: exact where it is a LoRA, else cut off at a rank."""

from typing import Any, NamedTuple

import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.export.registry import is_lora
from safetydpo.export.request import Asked
from safetydpo.models.index import Index
from safetydpo.models.lora import Factors, load_factors
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.finite import finite

Pair = tuple[torch.Tensor, torch.Tensor]


class Update(NamedTuple):
    """Factors that work at strength 1; kept: their share of the squared norm of all that changed; left: weights that
    changed and have no factors (biases, norms).
    """

    factors: Factors
    kept: float
    left: list[str]

    def notes(self, rank: int | None) -> list[str]:
        """What is to be said of them."""
        if rank is None:
            return []
        cut = f"Cut off at rank {rank}: {100 * self.kept:.2f} % of the squared norm of the change is kept."
        left = f"{len(self.left)} other weights that changed (biases, norms) are left out, first"
        return [cut, *([f"{left} {self.left[0]}; `pipeline` has them."] if self.left else [])]


def update_of(asked: Asked) -> Update:
    """The update of a method on the model's network, float32, cut off at `asked.rank` where there is one.

    Raises SafetyDPOError where it changes other parts of the pipeline, is of another model, or changes nothing.
    """
    if not is_lora(asked.method):
        return _of_weights(asked, asked.rank or 0)
    component = Index(asked.config.model).family.kind.component
    assert asked.weights
    pairs = load_factors(asked.weights.parent, component)
    pairs = {name: (a.float(), asked.scale * b.float()) for name, (a, b) in pairs.items()}
    if asked.rank is None:
        return Update(pairs, 1.0, [])
    cut = {name: truncated(pair, asked.rank) for name, pair in pairs.items()}
    kept, whole = (sum(energies[i] for _, energies in cut.values()) for i in (0, 1))
    return Update({name: pair for name, (pair, _) in cut.items()}, kept / whole if whole else 1.0, [])


def _of_weights(asked: Asked, rank: int) -> Update:
    base, changed = load_pipeline(asked.model("float32")), asked.open("float32")
    own = base.family.kind.component
    if base.family.kind != changed.family.kind:
        raise SafetyDPOError(f"{asked.method.name} is of another model than {asked.model_name}: take `pipeline`.")
    for part, module in base.components.items():
        if part != own and isinstance(module, torch.nn.Module) and _differ(module, getattr(changed, part, None)):
            raise SafetyDPOError(
                f"{asked.method.name} has another {part} than {asked.model_name}, which a LoRA of the {own} does not "
                "hold: take `pipeline`."
            )
    return difference(getattr(base, own), getattr(changed, own), rank, asked.method.name)


def _differ(own: torch.nn.Module, other: torch.nn.Module | None) -> bool:
    theirs = dict(other.named_parameters()) if other is not None else {}
    mine = dict(own.named_parameters())
    return mine.keys() != theirs.keys() or not all(weight.equal(theirs[name]) for name, weight in mine.items())


@torch.no_grad()
def difference(base: Any, changed: Any, rank: int, name: str) -> Update:
    """What leads from a network to another of its shape: of linear layers and convolutions cut off at a rank."""
    factors, left, kept, whole = dict[str, Pair](), list[str](), 0.0, 0.0
    theirs = dict(changed.named_parameters())
    for key, weight in base.named_parameters():
        other = theirs.get(key)
        if other is None or other.shape != weight.shape:
            raise SafetyDPOError(f"{name} is of another model: its network has no {key} of {tuple(weight.shape)}.")
        if other.equal(weight):
            continue
        layer, change = key.removesuffix(".weight"), other.float() - weight.float()
        if key.endswith(".weight") and _takes_lora(base.get_submodule(layer)):
            factors[layer], (part, all_of_it) = decomposed(change, rank)
            kept, whole = kept + part, whole + all_of_it
        else:
            left.append(key)
            whole += change.double().square().sum().item()
    if not factors:
        raise SafetyDPOError(f"{name} changes no layer that a LoRA could hold: take `pipeline`.")
    return Update(factors, kept / whole, left)


def _takes_lora(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or (isinstance(module, torch.nn.Conv2d) and module.groups == 1)


def decomposed(change: torch.Tensor, rank: int) -> tuple[Pair, tuple[float, float]]:
    """The factors of a weight's change (out, in) or (out, in, k, k) that are nearest to it at a rank; the squared norm
    that they keep, and its whole.
    """
    u, s, vh = torch.linalg.svd(change.flatten(1), full_matrices=False)
    return _pair(u, s, vh, rank, change.shape[1:])


def truncated(pair: Pair, rank: int) -> tuple[Pair, tuple[float, float]]:
    """The same of lora_B lora_A, which is never computed."""
    a, b = (factor.flatten(1).double() for factor in pair)
    (q_b, r_b), (q_a, r_a) = torch.linalg.qr(b), torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return _pair(q_b @ u, s, vh @ q_a.T, rank, pair[0].shape[1:])


def _pair(
    u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor, rank: int, shape: torch.Size
) -> tuple[Pair, tuple[float, float]]:
    """Factors of the largest singular values, which both get the root of; shape: of one input's part, (in, ...)."""
    energies, rank = s.double().square(), min(rank, len(s))
    root = s[:rank].sqrt()
    a, b = root[:, None] * vh[:rank], u[:, :rank] * root
    pair = a.reshape(rank, *shape).float(), b.reshape(*b.shape, *[1] * (len(shape) - 1)).float()
    return pair, (energies[:rank].sum().item(), energies.sum().item())


def in_precision(factors: Factors, dtype: str | None) -> Factors:
    """The factors as they are stored; SafetyDPOError where one is too large for the precision."""
    kind = getattr(torch, dtype or "float32")
    todo = "take --dtype bfloat16 or float32"
    return {
        name: tuple(finite(factor.to(kind), f"A factor of {name} in {dtype}", todo) for factor in pair)  # type: ignore[misc]
        for name, pair in factors.items()
    }
