"""From a method to the pipeline that renders with it."""

from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from safetydpo.config.baselines import Baselines
from safetydpo.config.model import Model
from safetydpo.methods.registry import method_of


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

    weights: the file of the run that the method needs; scale: of its LoRA.
    """
    method = method_of(name)
    open_pipeline = resolve_name(f"safetydpo.methods.{method.kind.opens}")
    return open_pipeline(Opening(model, baselines, weights, scale, method.variant))
