"""The model in training: noising, and adapters that go off and on."""

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import fit, make_pipeline, samples, train_config

from safetydpo.errors import SafetyDPOError
from safetydpo.models.lora import save_factors
from safetydpo.models.pipeline import load_pipeline
from safetydpo.training import lean_layers
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.samples import PAIR_ROLES

# Stable Diffusion's noise schedule by hand: betas are squares of a line from sqrt(0.00085) to sqrt(0.012).
ABAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


def test_epsilon_targets_are_the_noise_that_is_in_the_latents(denoiser, features):
    for role in PAIR_ROLES:
        features.shards[0][f"{role}_std"].zero_()  # no posterior draw: x0 = 0.18215 * mean
    batch = denoiser.noised(features, PAIR_ROLES, [2, 0], [11, 12])
    x0 = 0.18215 * torch.cat([features.shards[0][f"{role}_mean"][[2, 0]] for role in PAIR_ROLES])
    abar = ABAR[batch.timesteps][:, None, None, None]
    assert torch.allclose(batch.noisy_latents, abar.sqrt() * x0 + (1 - abar).sqrt() * batch.target, atol=1e-5)
    assert torch.equal(batch.target[:2], batch.target[2:])  # winner and loser share it
    assert not torch.equal(batch.target[0], batch.target[1])


def test_latents_are_drawn_from_the_posterior(denoiser, features):
    for role in PAIR_ROLES:
        features.shards[0][f"{role}_mean"].fill_(2.0)
        features.shards[0][f"{role}_std"].fill_(0.5)
    batch = denoiser.noised(features, PAIR_ROLES, [0, 1, 2], [1, 2, 3], timestep=0)
    x0 = (batch.noisy_latents - (1 - ABAR[0]).sqrt() * batch.target) / ABAR[0].sqrt() / 0.18215
    assert x0.mean().item() == pytest.approx(2.0, abs=0.06)  # 1536 values: standard error 0.5 / 39 = 0.013
    assert x0.std().item() == pytest.approx(0.5, abs=0.04)


def test_a_sample_is_noised_by_its_key_whoever_is_beside_it(denoiser, features):
    together = denoiser.noised(features, PAIR_ROLES, [0, 1], [11, 12])
    alone = denoiser.noised(features, PAIR_ROLES, [1], [12])
    assert torch.equal(together.noisy_latents[[1, 3]], alone.noisy_latents)
    assert torch.equal(together.timesteps[[1, 3]], alone.timesteps)


def test_both_images_of_a_pair_share_noise_and_timestep(denoiser, features):
    batch = denoiser.noised(features, PAIR_ROLES, [0, 1], [11, 12])
    assert torch.equal(batch.timesteps[:2], batch.timesteps[2:])
    assert torch.equal(batch.target[:2], batch.target[2:])  # epsilon: the target is the noise
    assert not torch.equal(batch.noisy_latents[:2], batch.noisy_latents[2:])


def test_noisy_latents_and_velocity_follow_the_formula(features, tmp_path):
    model = make_pipeline(tmp_path / "v", "sd21")
    denoiser = Denoiser(model)
    features.shards[0]["safe_std"] = torch.zeros_like(features.shards[0]["safe_std"])  # no posterior draw
    batch = denoiser.noised(features, ("safe",), [1], [5], timestep=400)
    x0 = features.shards[0]["safe_mean"][1] * 0.18215
    # DDPM's cumulative product by hand: betas are squares of a line from sqrt(0.00085) to sqrt(0.012)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.prod(1 - betas[:401]).float()
    noise = (batch.noisy_latents[0] - abar.sqrt() * x0) / (1 - abar).sqrt()
    assert noise.std().item() == pytest.approx(1, abs=0.25)
    assert torch.allclose(batch.target[0], abar.sqrt() * noise - (1 - abar).sqrt() * x0, atol=1e-4)


def test_the_reference_is_the_untouched_model(denoiser, features, tiny):
    batch = denoiser.noised(features, PAIR_ROLES, [0, 1], [11, 12])
    with torch.no_grad():
        condition = batch.condition["encoder_hidden_states"]
        frozen = load_pipeline(tiny).unet(batch.noisy_latents, batch.timesteps, condition).sample
        adapted = denoiser.predict(batch)
    assert torch.allclose(denoiser.reference(batch), frozen, atol=1e-5)
    assert not torch.allclose(adapted, frozen, atol=1e-2)


def test_adapters_are_on_again_after_an_error(denoiser, features):
    layer = next(m for m in denoiser.network.modules() if isinstance(m, BaseTunerLayer))

    def fail():
        with denoiser.without_adapters():
            assert layer.disable_adapters
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert not layer.disable_adapters


# 1 x 1, 3 x 3 and strided 3 x 3 convolutions of the tiny UNet, and linear layers
CONVOLUTIONS = ["to_q", "proj_in", "conv1", "conv_shortcut", "downsamplers.0.conv", "conv_out"]


def test_a_lora_on_convolutions_trains_whole_and_renders_as_trained(tiny, features, tmp_path, monkeypatch):
    monkeypatch.setattr(lean_layers, "LARGE", 1)  # every convolution, as in Stable Diffusion
    denoiser, config = Denoiser(tiny), train_config(target_modules=CONVOLUTIONS, alpha=6, learning_rate=1e-2)
    denoiser.add_adapter(config, seed=0)
    begun = denoiser.factors()
    assert {a.shape[2:] for a, _ in begun.values()} == {(), (1, 1), (3, 3)}
    fit(denoiser, samples(features, config), None, config, 2)
    trained = denoiser.factors()
    for module, (a, b) in trained.items():
        assert not torch.equal(a, begun[module][0]), module
        assert b.any(), module
    save_factors(trained, tmp_path, "unet", {})
    batch = denoiser.noised(features, PAIR_ROLES, [0, 1], [11, 12])
    fused = load_pipeline(tiny, tmp_path).unet
    with torch.no_grad():
        rendered = fused(batch.noisy_latents, batch.timesteps, batch.condition["encoder_hidden_states"]).sample
        assert torch.allclose(rendered, denoiser.predict(batch), atol=1e-4)
        assert not torch.allclose(rendered, denoiser.reference(batch), atol=1e-2)


def test_a_target_that_the_unet_lacks_is_named(tiny):
    with pytest.raises(SafetyDPOError, match=r"train\.target_modules: no module of .* has a name that ends in to_z"):
        Denoiser(tiny).add_adapter(train_config(target_modules=["to_q", "to_z"]), seed=0)
