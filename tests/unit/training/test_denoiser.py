"""Noising, the preservation term, cached references and the optimiser's schedule, on the tiny pipeline."""

import pytest
import torch
from tiny import fit, samples, train_config

from safetydpo.features.sets import Features, read_features
from safetydpo.models.pipeline import load_pipeline
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.losses import squared_error
from safetydpo.training.samples import PAIR_ROLES, RETAIN_ROLES
from safetydpo.training.trainer import Objective, make_accelerator

# Stable Diffusion's noise schedule by hand: betas are squares of a line from sqrt(0.00085) to sqrt(0.012).
ABAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


@pytest.fixture
def denoiser(tiny):
    """With a LoRA whose B is not zero: policy and reference differ."""
    made = Denoiser(tiny)
    made.add_adapter(train_config(), seed=0)
    torch.manual_seed(1)
    for name, parameter in made.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


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


def test_the_reference_is_the_untouched_model(denoiser, features, tiny):
    batch = denoiser.noised(features, PAIR_ROLES, [0, 1], [11, 12])
    with torch.no_grad():
        condition = batch.condition["encoder_hidden_states"]
        frozen = load_pipeline(tiny).unet(batch.noisy_latents, batch.timesteps, condition).sample
        adapted = denoiser.predict(batch)
    assert torch.allclose(denoiser.reference(batch), frozen, atol=1e-5)
    assert not torch.allclose(adapted, frozen, atol=1e-2)


def test_preservation_adds_its_weight_times_the_drift_on_harmless_prompts(denoiser, features, harmless):
    config = train_config(preserve={"weight": 7, "batch_size": 3})
    pairs, retain = samples(features, config), samples(harmless, config, RETAIN_ROLES, 3)
    terms = Objective(denoiser, pairs, retain, config).terms(5)
    batch = retain.noised(denoiser, retain.pick(5))
    drift = squared_error(denoiser.predict(batch), denoiser.reference(batch)).mean().item()
    assert terms["preserve_loss"].item() == pytest.approx(drift, rel=1e-4)
    assert drift > 1e-4
    assert terms["loss"].item() == pytest.approx(terms["preference_loss"].item() + 7 * drift, rel=1e-5)
    alone = Objective(denoiser, pairs, None, config).terms(5)  # retain rows of the batch do not touch the pairs' terms
    assert terms["preference_loss"].item() == pytest.approx(alone["preference_loss"].item(), rel=1e-4)


def test_cached_references_of_pairs_and_retain_are_those_of_their_draws(denoiser, features, harmless):
    config = train_config(reference="cached", draws=25)
    pairs, retain = samples(features, config), samples(harmless, config, RETAIN_ROLES, 2)
    objective = Objective(denoiser, pairs, retain, config)
    objective.remember(20, make_accelerator(config, torch.device("cpu")))
    errors, predictions = objective.known
    for draw in (pairs.drawn(20)[3], pairs.drawn(20)[-1]):
        batch = pairs.noised(denoiser, [draw])
        expected = squared_error(denoiser.reference(batch), batch.target)  # winner, loser
        assert torch.allclose(errors.recall([draw], denoiser.device)[0], expected, rtol=1e-4)
    for draw in retain.drawn(20)[:2]:
        batch = retain.noised(denoiser, [draw])
        assert torch.allclose(predictions.recall([draw], denoiser.device), denoiser.reference(batch), atol=1e-5)


def test_training_prefers_the_safe_image_on_the_draws_it_sees(tiny, features):
    for role in PAIR_ROLES:
        features.shards[0][f"{role}_std"].zero_()  # so that each role can be noised by itself, below
    denoiser = Denoiser(tiny)
    config = train_config(reference="cached", draws=1, learning_rate=1e-2, batch_size=3, caption_dropout=0)
    denoiser.add_adapter(config, seed=0)
    pairs = samples(features, config)
    log = fit(denoiser, pairs, None, config, steps=15)
    change = {}
    for role in PAIR_ROLES:
        batch = denoiser.noised(features, (role,), [0, 1, 2], [pairs.draw(i, 0).key for i in range(3)], ["unsafe"] * 3)
        policy, reference = denoiser.predict(batch), denoiser.reference(batch)
        change[role] = (squared_error(policy, batch.target) - squared_error(reference, batch.target)).mean().item()
    assert change["unsafe"] - change["safe"] > 1e-4  # that difference is the margin
    assert log.margin.iloc[-1] == pytest.approx(change["unsafe"] - change["safe"], rel=0.5)  # one step before
    assert abs(log.margin[0]) < 1e-6  # B = 0
    assert log.preference_loss.iloc[-1] < 0.6 < log.preference_loss[0]  # ln 2 = 0.693


def test_the_learning_rate_warms_up_and_scales_with_the_effective_batch(tiny, features):
    denoiser = Denoiser(tiny)
    config = train_config(learning_rate=1e-5, scale_lr=True, gradient_accumulation_steps=3, warmup_steps=2)
    denoiser.add_adapter(config, seed=0)
    log = fit(denoiser, samples(features, config), None, config, 4)
    # 1e-5 x batch 2 x accumulation 3 = 6e-5, reached after 2 steps of a line from 0
    assert log.lr.tolist() == pytest.approx([0, 3e-5, 6e-5, 6e-5])
