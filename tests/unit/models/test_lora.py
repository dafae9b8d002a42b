"""LoRA files: what they add to the UNet's weights and forward pass, whichever way they are loaded, and misfits."""

import copy

import numpy as np
import pytest
import torch
from diffusers.utils import logging
from tiny import make_pipeline, train_config

from safetydpo.errors import SafetyDPOError
from safetydpo.models.lora import FILE, load_factors, save_factors
from safetydpo.models.pipeline import load_network, load_pipeline
from safetydpo.models.sampling import render
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
    save_factors(factors, folder, "unet", made_by("train"))
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


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_fused_lora_adds_scale_times_b_a(tiny, lora, scale):
    folder, factors = lora
    base, fused = load_pipeline(tiny).unet, load_pipeline(tiny, folder, scale).unet
    for name, (a, b) in factors.items():
        expected = base.get_submodule(name).weight + scale * b @ a
        assert torch.allclose(fused.get_submodule(name).weight, expected, atol=1e-5)


def test_the_lora_file_changes_renders_as_fusing_does(tiny, lora):
    folder, _ = lora
    plain = load_pipeline(tiny)
    before = next(render(plain, ["a red circle"], [7], tiny)).astype(int)
    plain.load_lora_weights(str(folder))
    adapted = next(render(plain, ["a red circle"], [7], tiny)).astype(int)
    fused = next(render(load_pipeline(tiny, folder), ["a red circle"], [7], tiny)).astype(int)
    assert np.abs(adapted - fused).max() <= 1
    assert np.abs(adapted - before).max() > 1


@pytest.fixture(scope="module", params=["sd3", "flux-dev", "z-image"])
def transformer(request, tmp_path_factory):
    """A model of a transformer family, and the folder of a LoRA of random factors on its usual targets."""
    model = make_pipeline(tmp_path_factory.mktemp(request.param) / "p", request.param)
    family, network = load_network(model)[:2]
    draw, factors = torch.Generator().manual_seed(3), {}
    for name, module in network.named_modules():
        if name.endswith(family.kind.targets):
            a = torch.randn(2, module.in_features, generator=draw) * 0.3
            factors[name] = (a, torch.randn(module.out_features, 2, generator=draw) * 0.3)
    folder = tmp_path_factory.mktemp("lora")
    save_factors(factors, folder, "transformer", made_by("train"))
    return model, folder, factors


def test_a_transformers_lora_is_read_by_diffusers_whole_and_renders_as_fused(transformer, caplog):
    model, folder, factors = transformer
    plain = load_pipeline(model)
    before = next(render(plain, ["a red circle"], [7], model)).astype(int)
    logging.set_verbosity_warning()
    logging.enable_propagation()  # to caplog
    try:
        plain.load_lora_weights(str(folder))
    finally:
        logging.disable_propagation()
        logging.set_verbosity_error()
    assert [record.message for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
    assert sum(".lora_" in name for name, _ in plain.transformer.named_parameters()) == 2 * len(factors)
    adapted = next(render(plain, ["a red circle"], [7], model)).astype(int)
    base, fused = load_pipeline(model).transformer, load_pipeline(model, folder)
    for name, (a, b) in factors.items():
        expected = base.get_submodule(name).weight + b @ a
        assert torch.allclose(fused.transformer.get_submodule(name).weight, expected, atol=1e-5)
    assert np.abs(adapted - next(render(fused, ["a red circle"], [7], model)).astype(int)).max() <= 1
    assert np.abs(adapted - before).max() > 1


def test_a_transformers_lora_is_fused_as_it_was_trained(transformer, tmp_path):
    """alpha over rank is in the file."""
    model, _, _ = transformer
    denoiser = Denoiser(model)
    denoiser.add_adapter(train_config(rank=2, alpha=6), seed=0)
    for name, parameter in denoiser.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_factors(denoiser.factors(), tmp_path, "transformer", made_by("train"))
    fused, plain = load_pipeline(model, tmp_path).transformer, load_pipeline(model).transformer
    adapted = [(name, module) for name, module in denoiser.network.named_modules() if hasattr(module, "lora_A")]
    assert adapted
    for name, module in adapted:
        update = 6 / 2 * module.lora_B["default"].weight @ module.lora_A["default"].weight
        moved = fused.get_submodule(name).weight - plain.get_submodule(name).weight
        assert torch.allclose(moved, update, atol=1e-6)


def test_factors_of_another_component_are_refused(transformer):
    _, folder, factors = transformer
    again = load_factors(folder, "transformer")
    assert all(torch.equal(x, y) for m in factors for x, y in zip(factors[m], again[m], strict=True))
    with pytest.raises(SafetyDPOError, match=r"is not the LoRA of a unet in diffusers' layout: it .* transformer\."):
        load_factors(folder, "unet")


def test_factors_survive_the_file(lora):
    folder, factors = lora
    again = load_factors(folder, "unet")
    assert all(torch.equal(x, y) for m in factors for x, y in zip(factors[m], again[m], strict=True))


def test_alpha_over_rank_is_folded_into_the_file(tiny, tmp_path):
    denoiser = Denoiser(tiny)
    denoiser.add_adapter(train_config(rank=2, alpha=6), seed=0)
    for name, parameter in denoiser.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_factors(denoiser.factors(), tmp_path, "unet", made_by("train"))
    fused, plain = load_pipeline(tiny, tmp_path).unet, load_pipeline(tiny).unet
    for name, module in denoiser.network.named_modules():
        if hasattr(module, "lora_A"):
            update = 6 / 2 * module.lora_B["default"].weight @ module.lora_A["default"].weight
            moved = fused.get_submodule(name).weight - plain.get_submodule(name).weight
            assert torch.allclose(moved, update, atol=1e-6)
    trained = forward(denoiser.network)
    assert torch.allclose(forward(fused), trained, atol=1e-4)  # sums of float32, in another order
    assert not torch.allclose(forward(plain), trained, atol=1e-2)


def test_a_lora_of_another_model_is_refused(tiny, tmp_path):
    save_factors({"mid_block.nothing.to_q": (torch.ones(1, 3), torch.ones(3, 1))}, tmp_path, "unet", made_by("train"))
    with pytest.raises(
        SafetyDPOError, match=r"unet\.mid_block\.nothing\.to_q\.lora_A\.weight: the model has no mid_block"
    ):
        load_pipeline(tiny, tmp_path)


def test_a_lora_of_another_width_is_refused_by_its_first_wrong_key(tiny, tmp_path, lora):
    _, factors = lora
    module = min(factors)
    (a, b), wide = factors[module], tmp_path / "wide"
    save_factors(factors | {module: (torch.ones(a.shape[0], a.shape[1] + 5), b)}, wide, "unet", made_by("train"))
    with pytest.raises(SafetyDPOError) as error:
        load_pipeline(tiny, wide)
    assert f"unet.{module}.lora_A.weight is for {a.shape[1] + 5} inputs, the model has {a.shape[1]}" in str(error.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["unet.mid.to_q.lora_down.weight"], r"it has no unet\.mid\.to_q\.lora_A\.weight"),
        (["lora_unet_mid_to_q.lora_down.weight", "lora_unet_mid_to_q.lora_up.weight"], "it holds lora_unet_mid_to_q"),
        (["unet.mid.to_q.lora.down.weight", "unet.mid.to_q.lora.up.weight"], r"it holds unet\.mid\.to_q\.lora\.down"),
        (["base_model.model.mid.to_q.lora_A.weight", "base_model.model.mid.to_q.lora_B.weight"], "it .*base_model"),
        (["unet.conv_in.weight"], r"it (holds unet\.conv_in\.weight|has no lora_A)"),
        ([], "it has no lora_A"),
    ],
)
def test_a_lora_in_another_layout_is_refused_and_never_empty(tmp_path, keys, said):
    write_safetensors({key: torch.ones(1, 1) for key in keys}, tmp_path / FILE, {})
    with pytest.raises(SafetyDPOError, match=f"not the LoRA of a unet in diffusers' layout: {said}"):
        load_factors(tmp_path, "unet")


@pytest.mark.parametrize(
    "key", ["unet.mid.to_q.alpha", "unet.mid.to_q.lora_magnitude_vector", "mid.to_q.lora_A.weight"]
)
def test_factors_with_more_than_factors_are_refused(tmp_path, key):
    pair = {f"unet.mid.to_q.lora_{side}.weight": torch.ones(1, 1) for side in "AB"}
    write_safetensors(pair | {key: torch.ones(1, 1)}, tmp_path / FILE, {})
    with pytest.raises(SafetyDPOError, match=f"not the LoRA of a unet in diffusers' layout: it holds {key}"):
        load_factors(tmp_path, "unet")


def test_factors_that_are_nan_are_refused(tmp_path):
    save_factors({"mid.to_q": (torch.ones(1, 3), torch.full((3, 1), torch.nan))}, tmp_path, "unet", {})
    with pytest.raises(SafetyDPOError, match=r"unet\.mid\.to_q\.lora_B\.weight of .*: 3 of 3 values are NaN"):
        load_factors(tmp_path, "unet")


def test_a_folder_without_a_lora_is_said(tiny, tmp_path):
    with pytest.raises(SafetyDPOError, match=r"has no pytorch_lora_weights\.safetensors"):
        load_pipeline(tiny, tmp_path)
