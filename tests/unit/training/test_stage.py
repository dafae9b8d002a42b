"""The training step on a tiny pipeline of random weights."""

import math

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import fit, make_pipeline, samples, train_config

from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import read_features
from safetydpo.models.lora import load_factors
from safetydpo.storage.files import read_parquet
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.reference import References
from safetydpo.training.samples import PAIR_ROLES
from safetydpo.training.stage import train_expert
from safetydpo.training.trainer import Objective, make_accelerator


@pytest.fixture
def denoiser(tiny):
    made = Denoiser(tiny)
    made.add_adapter(train_config(), seed=0)
    return made


@pytest.fixture
def features(tiny, tiny_features):
    return read_features([tiny_features / "features.safetensors"], tiny.id)


def terms_of(denoiser, pairs, config, turn=0):
    return Objective(denoiser, pairs, None, config).terms(turn)


def test_the_first_loss_is_ln_2(denoiser, features):
    config = train_config(beta=5000)
    terms = terms_of(denoiser, samples(features, config), config)
    assert terms["preference_loss"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert terms["winner_error"].item() == pytest.approx(terms["reference_winner_error"].item(), abs=1e-6)


def test_adapters_are_on_again_after_an_error(denoiser, features):
    layer = next(m for m in denoiser.unet.modules() if isinstance(m, BaseTunerLayer))

    def fail():
        with denoiser.without_adapters():
            assert layer.disable_adapters
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert not layer.disable_adapters


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


def test_cached_reference_equals_the_exact_one(denoiser, features):
    config = train_config(reference="cached", draws=3)
    cached = Objective(denoiser, samples(features, config), None, config)
    cached.remember(5, make_accelerator(config, torch.device("cpu")))
    exact = terms_of(denoiser, samples(features, config), config, 4)
    assert cached.terms(4)["reference_loser_error"].item() == pytest.approx(
        exact["reference_loser_error"].item(), rel=1e-5
    )
    known = References(samples(features, config), turns=1)
    assert len(known.known) == len(set(samples(features, config).pick(0)))  # what no step asks is not kept


def numbers(pairs, turn):
    return [draw.sample for draw in pairs.pick(turn)]


def test_an_epoch_sees_every_pair_and_fewer_pairs_than_a_batch_go_round(features):
    pairs = samples(features, train_config(batch_size=3))
    assert sorted(numbers(pairs, 0)) == sorted(numbers(pairs, 1)) == [0, 1, 2]
    assert sorted(numbers(samples(features, train_config(batch_size=6)), 0)) == [0, 0, 1, 1, 2, 2]


def test_caption_dropout_uses_the_empty_prompt(denoiser, features):
    pairs = samples(features, train_config(caption_dropout=1.0))
    batch = pairs.noised(denoiser, pairs.pick(0))
    empty = features.shards[0]["encoder_hidden_states"][-1]
    assert torch.equal(batch.condition["encoder_hidden_states"][0], empty)


def test_a_loss_that_is_not_finite_names_step_and_pairs(denoiser, features):
    features.shards[0]["safe_mean"][1] = torch.inf
    config = train_config(batch_size=3)
    with pytest.raises(SafetyDPOError, match=r"x: the loss is not finite at step 0 \(p1\)"):
        fit(denoiser, samples(features, config), None, config, 2)


def test_the_same_seed_trains_the_same_expert(tiny, tiny_features, tmp_path):
    paths = [str(tiny_features / "features.safetensors")]
    for name in ("a", "b"):
        where = {"out": tmp_path / name, "checkpoints": tmp_path / "checkpoints"}
        train_expert(paths, None, tiny, train_config(), steps=3, seed=1, name="ring", **where)
    first, second = load_factors(tmp_path / "a"), load_factors(tmp_path / "b")
    assert all(torch.equal(x, y) for m in first for x, y in zip(first[m], second[m], strict=True))
    assert any(b.abs().max() > 0 for _, b in first.values())
    log = read_parquet(tmp_path / "a/training.parquet")
    assert list(log.step) == [0, 1, 2]
    assert log.preference_loss[0] == pytest.approx(math.log(2), abs=1e-6)
    assert "pipe.load_lora_weights" in (tmp_path / "a/README.md").read_text()
