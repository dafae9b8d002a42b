"""Weights of the network that a baseline changed: a safetensors file of those alone."""

from pathlib import Path
from typing import Any

import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import Opening
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import read_safetensors


@torch.no_grad()
def put_weights(network: Any, path: Path | str) -> None:
    """Overwrite the weights of a network with those of a file.

    Raises SafetyDPOError naming the first that the network lacks or has in another shape.
    """
    tensors, _ = read_safetensors(path)
    own = dict(network.named_parameters())
    for name, value in tensors.items():
        if name not in own or own[name].shape != value.shape:
            has = f"of shape {tuple(own[name].shape)}" if name in own else "missing"
            raise SafetyDPOError(
                f"{path} is of another network: {name} has shape {tuple(value.shape)} there and is {has} in the model."
            )
        own[name].copy_(value)


def open_pipeline(opening: Opening) -> Any:
    """The target's pipeline with the weights that a baseline changed."""
    pipeline = load_pipeline(opening.model)
    put_weights(pipeline.family.network(pipeline), str(opening.weights))
    return pipeline
