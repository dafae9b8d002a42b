"""LoRA files: what they add to the UNet's forward pass, whichever way they are loaded."""

import copy

import pytest
import torch
from tiny import train_config

from safetydpo.errors import SafetyDPOError
from safetydpo.models.lora import FILE, load_factors, save_factors
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import made_by, write_safetensors
from safetydpo.training.denoiser import Denoiser

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def base(tiny):
    return load_pipeline(tiny).unet


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    """Random factors on every attention projection, and the folder they are saved in."""
    rng = torch.Generator().manual_seed(3)
    layers = {n: m for n, m in base.named_modules() if n.endswith(TARGETS)}
    factors = {
        n: (torch.randn(2, m.in_features, generator=rng), torch.randn(m.out_features, 2, generator=rng))
        for n, m in layers.items()
    }
    assert {n.rsplit("attn", 1)[1] for n in factors} == {f"{i}.{t}" for i in (1, 2) for t in TARGETS}
    folder = tmp_path_factory.mktemp("lora")
    save_factors(factors, folder, made_by("train"))
    return folder, factors


@torch.no_grad()
def forward(unet):
    rng = torch.Generator().manual_seed(5)
    latents, text = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 16, 16, generator=rng)
    return unet(latents, torch.tensor([10, 700]), encoder_hidden_states=text).sample


def with_weights_added(base, factors, scale):
    unet = copy.deepcopy(base)
    for name, (a, b) in factors.items():
        unet.get_submodule(name).weight.data += scale * (b @ a)
    return unet


@pytest.mark.parametrize(("route", "scale"), [("load_lora_weights", 1.0), ("fused", 1.0), ("fused", 0.5)])
def test_the_forward_pass_is_that_of_weights_plus_b_a(tiny, base, lora, route, scale):
    folder, factors = lora
    if route == "fused":
        unet = load_pipeline(tiny, folder, scale).unet
    else:
        pipe = load_pipeline(tiny)
        pipe.load_lora_weights(str(folder))
        unet = pipe.unet
    expected = forward(with_weights_added(base, factors, scale))
    assert torch.allclose(forward(unet), expected, atol=1e-4)
    assert (expected - forward(base)).abs().max() > 1e-2  # the LoRA is not too small to be missed


def test_alpha_over_rank_is_folded_into_the_file(tiny, tmp_path):
    denoiser = Denoiser(tiny)
    denoiser.add_adapter(train_config(rank=2, alpha=6), seed=0)
    for name, parameter in denoiser.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_factors(denoiser.factors(), tmp_path, made_by("train"))
    trained = forward(denoiser.unet)  # updates of 6 / 2 times B A
    assert torch.allclose(forward(load_pipeline(tiny, tmp_path).unet), trained, atol=1e-5)
    assert not torch.allclose(forward(load_pipeline(tiny).unet), trained, atol=1e-2)


def test_a_lora_in_another_layout_names_the_key_it_lacks(tmp_path):
    write_safetensors({"unet.mid.to_q.lora_down.weight": torch.ones(1, 1)}, tmp_path / FILE, {})
    with pytest.raises(
        SafetyDPOError, match=r"not a UNet LoRA in diffusers' layout: .*unet\.mid\.to_q\.lora_A\.weight"
    ):
        load_factors(tmp_path)


def test_a_folder_without_a_lora_is_said(tiny, tmp_path):
    with pytest.raises(SafetyDPOError, match=r"has no pytorch_lora_weights\.safetensors"):
        load_pipeline(tiny, tmp_path)
