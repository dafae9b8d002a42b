"""What a method changes in the network, as LoRA factors: exact where it is a LoRA, else cut off at a rank."""

from typing import Any, NamedTuple

import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.export.registry import is_lora
from safetydpo.export.request import Asked
from safetydpo.models.index import Index
from safetydpo.models.lora import Factors, Pair, cut, energy_of, flat, load_factors, shaped_as, truncate
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.finite import finite


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
    less = {name: cut_off(pair, asked.rank) for name, pair in pairs.items()}
    kept, whole = (sum(map(energy_of, factors.values())) for factors in (less, pairs))
    return Update(less, kept / whole if whole else 1.0, [])


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
    factors, left, whole = Factors(), list[str](), 0.0
    theirs = dict(changed.named_parameters())
    for key, weight in base.named_parameters():
        other = theirs.get(key)
        if other is None or other.shape != weight.shape:
            raise SafetyDPOError(f"{name} is of another model: its network has no {key} of {tuple(weight.shape)}.")
        if other.equal(weight):
            continue
        layer, change = key.removesuffix(".weight"), other.float() - weight.float()
        if key.endswith(".weight") and _takes_lora(base.get_submodule(layer)):
            factors[layer] = nearest(change, rank)
        else:
            left.append(key)
        whole += change.double().square().sum().item()
    if not factors:
        raise SafetyDPOError(f"{name} changes no layer that a LoRA could hold: take `pipeline`.")
    return Update(factors, sum(map(energy_of, factors.values())) / whole, left)


def _takes_lora(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or (isinstance(module, torch.nn.Conv2d) and module.groups == 1)


def nearest(change: torch.Tensor, rank: int) -> Pair:
    """The factors of a weight's change (out, in) or (out, in, k, k) that are nearest to it at a rank."""
    matrix = change.flatten(1)
    a, b = truncate(matrix, min(rank, *matrix.shape))
    return a.reshape(-1, *change.shape[1:]), b.reshape(*b.shape, *[1] * (change.ndim - 2))


def cut_off(pair: Pair, rank: int) -> Pair:
    """The same of lora_B lora_A."""
    a, b = (factor.double() for factor in flat(pair))
    low, up = cut((a, b), min(rank, *a.shape, len(b)))
    return shaped_as((low.float(), up.float()), pair)


def in_precision(factors: Factors, dtype: str | None) -> Factors:
    """The factors as they are stored; SafetyDPOError where one is too large for the precision."""
    kind = getattr(torch, dtype or "float32")
    todo = "take --dtype bfloat16 or float32"
    return {
        name: tuple(finite(factor.to(kind), f"A factor of {name} in {dtype}", todo) for factor in pair)  # type: ignore[misc]
        for name, pair in factors.items()
    }
