"""Features of the tiny pairs, and denoisers whose LoRA is not zero."""

import pytest
import torch
from tiny import adapted, train_config

from safetydpo.features.sets import Features, read_features
from safetydpo.training.denoiser import Denoiser


@pytest.fixture
def features(tiny, tiny_features):
    return read_features([tiny_features / "features.safetensors"], tiny.id)


@pytest.fixture
def harmless(features):
    """The safe images of the pairs, as a retain set."""
    tensors = {"image_mean": features.shards[0]["safe_mean"], "image_std": features.shards[0]["safe_std"]}
    text = features.shards[0]
    tensors |= {"image_caption": text["safe_caption"], "encoder_hidden_states": text["encoder_hidden_states"]}
    return Features(["r0", "r1", "r2"], [tensors])


@pytest.fixture
def denoiser(tiny):
    """With a LoRA whose B is not zero: policy and reference differ."""
    made = Denoiser(tiny)
    made.add_adapter(train_config(), seed=0)
    torch.manual_seed(1)
    for name, parameter in made.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture
def make(tiny):
    """A denoiser with the adapter of a config; B is not zero, so that everything has a gradient."""

    def made(config):
        denoiser = Denoiser(tiny)
        return adapted(denoiser, config)

    return made
