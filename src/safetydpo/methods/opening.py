"""From a method to the pipeline that renders with it."""

from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from safetydpo.config.baselines import Baselines
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.registry import method_of
from safetydpo.models.families.registry import refusals
from safetydpo.models.index import Index


class Opening(NamedTuple):
    """What a kind of method makes its pipeline of; see `open_method`. variant: what the `*` of its name stands for."""

    model: Model
    baselines: Baselines
    weights: Path | str | None
    scale: float
    variant: str


def open_method(
    name: str, model: Model, baselines: Baselines, weights: Path | str | None = None, scale: float = 1.0
) -> Any:
    """The pipeline of a method, called as a diffusers pipeline is.

    weights: the file of the run that the method needs; scale: of its LoRA. Raises SafetyDPOError where the method needs
    guidance and there is none, or the model's family cannot do what it does.
    """
    method = method_of(name)
    refuse(name, model)
    if method.kind.guided and model.guidance_scale <= 1:
        raise SafetyDPOError(f"{name} changes classifier-free guidance: model.guidance_scale must be above 1.")
    open_pipeline = resolve_name(f"safetydpo.methods.{method.kind.opens}")
    return open_pipeline(Opening(model, baselines, weights, scale, method.variant))


def refuse(name: str, model: Model) -> None:
    """SafetyDPOError where a method cannot be made of the model's family."""
    if lines := refusals(Index(model).family.kind, {name: method_of(name).kind.name}, model.id):
        raise SafetyDPOError(f"{lines[0]}.")
