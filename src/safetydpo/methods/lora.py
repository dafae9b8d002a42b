"""The model itself, and with a LoRA: base, experts, merges."""

from typing import Any

from safetydpo.methods.opening import Opening
from safetydpo.models.pipeline import load_pipeline


def open_pipeline(opening: Opening) -> Any:
    """The target's pipeline, the LoRA of the run fused where the method has one."""
    return load_pipeline(opening.model, opening.weights, opening.scale)
