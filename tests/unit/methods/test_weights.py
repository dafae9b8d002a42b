"""Weights that a baseline changed."""

import pytest
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.methods.weights import put_weights
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import write_safetensors


def test_changed_weights_are_put_in_and_others_refused(tiny, tmp_path):
    unet = load_pipeline(tiny).unet
    name, old = "conv_in.bias", unet.conv_in.bias.detach().clone()
    write_safetensors({name: old + 1}, tmp_path / "w.safetensors", {})
    put_weights(unet, tmp_path / "w.safetensors")
    assert unet.conv_in.bias.allclose(old + 1)
    write_safetensors({name: torch.zeros(3)}, tmp_path / "w.safetensors", {})
    with pytest.raises(
        SafetyDPOError, match=r"of another network: conv_in.bias has shape \(3,\) there and is of shape"
    ):
        put_weights(unet, tmp_path / "w.safetensors")
    write_safetensors({"nothing": torch.zeros(3)}, tmp_path / "w.safetensors", {})
    with pytest.raises(SafetyDPOError, match=r"nothing has shape .* and is missing in the model"):
        put_weights(unet, tmp_path / "w.safetensors")
