"""Prediction types: how timesteps are drawn, latents noised, and what the network should answer."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from safetydpo.errors import SafetyDPOError
from safetydpo.models.prediction import Flow, prediction_of, shift_of

EULER = "FlowMatchEulerDiscreteScheduler"
DYNAMIC = {"_class_name": EULER, "use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
DYNAMIC |= {"base_image_seq_len": 256, "max_image_seq_len": 4096}
DDPM = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").config


def flow(sampling=None, tokens=0, **config):
    return prediction_of({"_class_name": EULER, **config}, "m", sampling, tokens)


def drawn(prediction, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([prediction.draw_timestep(generator) for _ in range(count)])


def test_an_unknown_prediction_type_is_one_sentence():
    with pytest.raises(SafetyDPOError, match=r"m predicts sample .*training knows epsilon, v_prediction and flow"):
        prediction_of(DDPMScheduler(prediction_type="sample").config, "m")
    with pytest.raises(SafetyDPOError, match=r"m predicts epsilon \(NoSuchScheduler\)"):
        prediction_of({"_class_name": "NoSuchScheduler", "num_train_timesteps": 1000}, "m")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"shift": 3.0}, 750.0),  # 3 x .5 / (1 + 2 x .5)
        ({"shift": 1.0}, 500.0),
        ({}, 500.0),
        ({"shift": 3.0, "num_train_timesteps": 100}, 75.0),
        # mu of 1,024 tokens: .5 + .65 x 768 / 3,840 = .63; e^.63 / (e^.63 + 1) = .652489
        (DYNAMIC, 652.489),
        (DYNAMIC | {"time_shift_type": "linear"}, 386.503),  # .63 / (.63 + 1)
    ],
)
def test_a_draw_of_one_half_is_shifted(monkeypatch, config, expected):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(0.5))
    found = flow("uniform", tokens=1024, **config).draw_timestep(torch.Generator())
    assert found.item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_the_shift_by_resolution_is_the_schedulers_own(tokens, kind):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, time_shift_type=kind)
    mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)  # as the pipeline computes it
    shares = torch.tensor([0.9, 0.5, 0.1])
    scheduler.set_timesteps(sigmas=shares.tolist(), mu=mu)
    k = shift_of(scheduler.config, tokens)
    assert torch.allclose(k * shares / (1 + (k - 1) * shares), scheduler.sigmas[:-1], atol=1e-6)


def test_logit_normal_draws_have_the_quantiles_of_a_shifted_normal():
    """sigmoid(z) shifted by k is sigmoid(z + ln k): of 4,000 draws, a quantile's standard error is below .02 in z."""
    timesteps = drawn(flow(shift=3.0), 4000)
    z = torch.logit(timesteps / 1000) - math.log(3)
    for share, quantile in ((0.05, -1.6449), (0.25, -0.6745), (0.5, 0.0), (0.75, 0.6745), (0.95, 1.6449)):
        assert z.quantile(share).item() == pytest.approx(quantile, abs=0.13)
    assert ((timesteps > 0) & (timesteps < 1000)).all()


def test_flow_draws_logit_normal_where_nothing_is_said_and_uniform_where_it_is():
    assert flow().sampling == "logit-normal"
    shares = drawn(flow("uniform"), 2000) / 1000
    for share in (0.1, 0.5, 0.9):
        assert shares.quantile(share).item() == pytest.approx(share, abs=0.04)  # 3 standard errors of the median


def test_uniform_draws_of_a_unet_are_torchs_randint_and_logit_normal_ones_dwell_in_the_middle():
    generator = torch.Generator().manual_seed(7)
    expected = [torch.randint(1000, (), generator=generator).item() for _ in range(50)]
    for sampling in (None, "uniform"):
        assert drawn(prediction_of(DDPM, "m", sampling), 50, seed=7).tolist() == expected
    middle = drawn(prediction_of(DDPM, "m", "logit-normal"), 2000)
    assert middle.dtype == torch.long
    assert 0 <= middle.min() <= middle.max() <= 999
    # of a normal's draws, .5 lie within .6745 of 0, and sigmoid(.6745) = .6625
    assert ((middle > 337) & (middle < 663)).float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_a_draw_that_rounds_up_to_the_end_is_the_last_step(monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda *_, **__: torch.tensor(100.0))  # whose sigmoid is 1 in float32
    assert prediction_of(DDPM, "m", "logit-normal").draw_timestep(torch.Generator()).item() == 999


def test_noising_is_the_schedulers_and_the_target_leads_from_image_to_noise():
    scheduler, draw = FlowMatchEulerDiscreteScheduler(shift=3.0), torch.Generator().manual_seed(1)
    latents, noise = torch.randn(3, 4, 2, 2, generator=draw), torch.randn(3, 4, 2, 2, generator=draw)
    timesteps = scheduler.timesteps[[10, 500, 990]]
    prediction = flow(**scheduler.config)
    noisy = prediction.add_noise(latents, noise, timesteps)
    assert torch.allclose(noisy, scheduler.scale_noise(latents, timesteps, noise), atol=1e-6)
    sigmas = (timesteps / 1000)[:, None, None, None]
    target = prediction.target(latents, noise, timesteps)
    assert torch.allclose(noisy - sigmas * target, latents, atol=1e-5)  # one step of Euler to s = 0
    assert torch.allclose(noisy + (1 - sigmas) * target, noise, atol=1e-5)  # and to s = 1


@pytest.mark.parametrize(("config", "timestep"), [({"_class_name": EULER}, 300.0), (DDPM, 300)])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_noise_unit_turns_differences_of_predictions_into_those_of_noises(config, timestep, kind):
    """Two targets of one noisy latent: the noise that each stands for follows from the noising alone."""
    prediction = prediction_of({**config, "prediction_type": kind}, "m")
    draw, at = torch.Generator().manual_seed(2), torch.tensor([timestep])
    noisy, first, second = (torch.randn(1, 4, 2, 2, generator=draw).double() for _ in range(3))
    zero = torch.zeros_like(noisy)
    scale, spread = (prediction.add_noise(*pair, at) for pair in ((torch.ones_like(noisy), zero), (zero, zero + 1)))
    targets = [prediction.target((noisy - spread * noise) / scale, noise, at) for noise in (first, second)]
    found = prediction.noise_unit(timestep) * (targets[1] - targets[0])
    assert torch.allclose(found, second - first, atol=1e-4)


def test_of_flow_at_pure_noise_no_difference_is_one_of_noises():
    assert Flow({}).noise_unit(1000) == 0
