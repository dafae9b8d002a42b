"""Options of the trainer, on the tiny pipeline."""

import math

import pandas as pd
import pytest
import torch
from tiny import fit, samples, train_config

from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import read_features
from safetydpo.storage.checkpoints import Checkpoints
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.optimizers import learning_rate, make_optimizer
from safetydpo.training.samples import PAIR_ROLES, RETAIN_ROLES, Draw
from safetydpo.training.stage import train_expert
from safetydpo.training.trainer import Objective, Trainer, make_accelerator

CPU = torch.device("cpu")


@pytest.fixture
def features(tiny, tiny_features):
    return read_features([tiny_features / "features.safetensors"], tiny.id)


@pytest.fixture
def make(tiny):
    """A denoiser with the adapter of a config; B is not zero, so that everything has a gradient."""

    def made(config):
        denoiser = Denoiser(tiny)
        denoiser.add_adapter(config, 0)
        torch.manual_seed(1)
        for name, parameter in denoiser.unet.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return denoiser

    return made


def drawn(count):
    return [Draw(0, 0, key) for key in range(count)]


@pytest.mark.parametrize(("condition", "safe_share"), [("unsafe", 0.0), ("safe", 1.0), ("both", 0.5)])
def test_the_condition_chooses_the_prompt(make, features, condition, safe_share):
    config = train_config(condition=condition, caption_dropout=0)
    batch = samples(features, config).noised(make(config), drawn(200))
    text = {role: features.condition([0], [role])["encoder_hidden_states"][0] for role in PAIR_ROLES}
    seen = batch.condition["encoder_hidden_states"]
    assert not torch.equal(text["safe"], text["unsafe"])
    safe = sum(torch.equal(row, text["safe"]) for row in seen[:200])
    assert safe + sum(torch.equal(row, text["unsafe"]) for row in seen[:200]) == 200
    assert safe / 200 == pytest.approx(safe_share, abs=0.11)  # 3 standard errors of a fair coin
    assert torch.equal(seen[:200], seen[200:])  # one prompt for winner and loser


def test_captions_are_dropped_at_their_rate(make, features):
    config = train_config(caption_dropout=0.2)
    batch = samples(features, config).noised(make(config), drawn(400))
    empty = features.condition([0], [""])["encoder_hidden_states"][0]
    dropped = sum(torch.equal(row, empty) for row in batch.condition["encoder_hidden_states"][:400])
    assert dropped / 400 == pytest.approx(0.2, abs=0.06)


def test_one_coin_mirrors_both_images_of_a_pair(make, features):
    for role in PAIR_ROLES:
        for kind in ("std", "flip_std"):
            features.shards[0][f"{role}_{kind}"].zero_()
        features.shards[0][f"{role}_mean"].fill_(1.0)
        features.shards[0][f"{role}_flip_mean"].fill_(-1.0)
    config = train_config(flip=0.5)
    batch = samples(features, config).noised(make(config), drawn(200))
    # x_t = sqrt(abar) x0 + sqrt(1 - abar) noise: what is left without the noise has the sign of x0
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0).float()[batch.timesteps][:, None, None, None]
    left = (batch.noisy_latents - (1 - abar).sqrt() * batch.target).mean((1, 2, 3))
    mirrored = left < 0
    assert torch.equal(mirrored[:200], mirrored[200:])
    assert mirrored[:200].float().mean().item() == pytest.approx(0.5, abs=0.11)


def test_accumulated_parts_are_the_whole_batch(make, features):
    logs, weights = [], []
    for size, parts in ((4, 1), (1, 4)):
        # the published beta would multiply the rounding of errors, which differs with the batch, by thousands
        config = train_config(batch_size=size, gradient_accumulation_steps=parts, caption_dropout=0.3, beta=50)
        denoiser = make(config)
        logs.append(fit(denoiser, samples(features, config), None, config, 1).iloc[0])
        weights.append(torch.cat([p.detach().ravel() for p in denoiser.parameters]))
    for column in ("loss", "winner_error", "margin", "grad_norm"):
        assert logs[0][column] == pytest.approx(logs[1][column], rel=1e-4, abs=1e-6), column
    assert ((weights[0] - weights[1]).norm() / weights[0].norm()).item() < 1e-3


def test_gradient_checkpointing_changes_no_gradient(make, features):
    grads = []
    for on in (False, True):
        config = train_config(gradient_checkpointing=on)
        denoiser = make(config)
        assert denoiser.unet.is_gradient_checkpointing == on
        Objective(denoiser, samples(features, config), None, config).terms(0)["loss"].backward()
        grads.append(torch.cat([p.grad.ravel() for p in denoiser.parameters]))
    assert torch.allclose(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_each_loss_is_one_key(make, features):
    found, grads = {}, {}
    for name, changes in {"dpo": {}, "sdpo": {"loss": "sdpo", "sdpo_mu": 1.0}, "sft": {"loss": "sft"}}.items():
        config = train_config(beta=50, **changes)
        denoiser = make(config)
        found[name] = Objective(denoiser, samples(features, config), None, config).terms(0)
        found[name]["loss"].backward()
        grads[name] = torch.cat([p.grad.ravel() for p in denoiser.parameters])
    assert found["sft"]["loss"].item() == pytest.approx(found["sft"]["winner_error"].item())
    assert found["sdpo"]["loss"].item() == pytest.approx(found["dpo"]["loss"].item())  # one value, two gradients
    assert not torch.allclose(grads["sdpo"], grads["dpo"], rtol=1e-2)


def test_sft_lowers_the_winners_error(make, features):
    config = train_config(loss="sft", reference="cached", draws=1, batch_size=3, learning_rate=1e-2, caption_dropout=0)
    log = fit(make(config), samples(features, config), None, config, 12)
    assert log.winner_error.iloc[-1] < 0.97 * log.winner_error.iloc[0]


def test_adafactor_takes_the_rate_as_it_is():
    """First update of a zero matrix: g / sqrt(mean of squares) has RMS 1, so the weights move by the rate."""
    weight = torch.nn.Parameter(torch.zeros(8, 6))
    optimizer = make_optimizer([weight], train_config(optimizer="adafactor", learning_rate=0.01, weight_decay=0))
    weight.grad = torch.outer(torch.linspace(1, 2, 8), torch.linspace(-1, 3, 6))  # rank 1: the factored mean is exact
    optimizer.step()
    assert torch.allclose(weight, -0.01 * weight.grad.sign(), rtol=1e-3)


def test_the_effective_batch_scales_the_rate_and_is_printed(capsys):
    config = train_config(learning_rate=1e-5, scale_lr=True, batch_size=4, gradient_accumulation_steps=4)
    assert learning_rate(config, processes=2) == pytest.approx(3.2e-4)
    assert "1e-05 x batch 4 x accumulation 4 x processes 2 = 0.00032" in capsys.readouterr().out


class KilledError(Exception):
    """Stands for a kill in the middle of a step."""


@pytest.mark.parametrize("changes", [{"optimizer": "adafactor"}, {"lr_scheduler": "cosine", "reference": "cached"}])
def test_a_new_process_goes_on_bit_identical(make, features, tmp_path, changes):
    config = train_config(checkpoint_every=2, batch_size=2, caption_dropout=0.3, **changes)

    def trainer(states):
        objective = Objective(make(config), samples(features, config), None, config)
        return Trainer(objective, 7, "x", make_accelerator(config, CPU), states)

    whole, first, second = trainer(None), trainer(Checkpoints(tmp_path, {})), trainer(Checkpoints(tmp_path, {}))
    expected = whole.fit()
    step = first.step

    def until_five(number):
        if number == 5:
            raise KilledError
        return step(number)

    first.step = until_five
    with pytest.raises(KilledError):
        first.fit()
    found = second.fit()
    pd.testing.assert_frame_equal(found.drop(columns="pairs_per_s"), expected.drop(columns="pairs_per_s"))
    for mine, other in zip(second.denoiser.parameters, whole.denoiser.parameters, strict=True):
        assert torch.equal(mine, other)
    assert not math.isnan(found.loss.iloc[-1])


def test_half_precision_without_a_gpu_and_missing_mirror_images_are_refused(tiny, tiny_features, tmp_path):
    with pytest.raises(SafetyDPOError, match="fp16 needs a GPU"):
        make_accelerator(train_config(mixed_precision="fp16"), CPU)
    from tiny import ROLES

    from safetydpo.features.stage import write_features

    folder, plain = tiny_features, tmp_path / "plain.safetensors"
    write_features([str(folder / "pairs.parquet")], folder / "prompts.parquet", ROLES, tiny, plain)
    where = {"out": tmp_path / "out", "checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(SafetyDPOError, match=r"has no mirrored images, train.flip wants them"):
        train_expert([str(plain)], None, tiny, train_config(flip=0.5), steps=1, seed=0, name="x", **where)


def test_a_checkpoint_of_another_config_or_of_other_features_is_refused(tiny, tiny_features, tmp_path):
    paths, where = [str(tiny_features / "features.safetensors")], {"out": tmp_path / "o", "checkpoints": tmp_path / "c"}
    config = train_config(checkpoint_every=1)

    def train(changed, paths):
        train_expert(paths, None, tiny, config.model_copy(update=changed), steps=2, seed=0, name="x", **where)

    (tmp_path / "o").write_text("")  # no folder: the training ends at its last step, before it can write
    with pytest.raises(SafetyDPOError, match="Cannot write"):
        train({}, paths)
    with pytest.raises(SafetyDPOError, match=r"was made with train\.beta = 5000\.0, this run has 300"):
        train({"beta": 300}, paths)
    with pytest.raises(SafetyDPOError, match="was made with features = "):
        train({}, paths * 2)
    (tmp_path / "o").unlink()
    train({"checkpoint_every": 7}, paths)
    assert (tmp_path / "o/training.parquet").exists()


def test_tensorboard_on_request(tiny, tiny_features, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, where = train_config(tensorboard=True), {"out": tmp_path / "experts/x", "checkpoints": tmp_path / "c"}
    paths = [str(tiny_features / "features.safetensors")]
    train_expert(paths, None, tiny, config, steps=3, seed=0, name="x", **where)
    events = EventAccumulator(str(next((tmp_path / "tensorboard").rglob("events*"))))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [0, 1, 2]
    assert events.Scalars("preference_loss")[0].value == pytest.approx(math.log(2), abs=1e-6)


def test_a_retain_set_is_neither_dropped_nor_conditioned_on_safe_prompts(features):
    pairs = samples(features, train_config(condition="safe", caption_dropout=0.5))
    retain = samples(features, train_config(condition="safe", caption_dropout=0.5), RETAIN_ROLES, 2)
    assert {pairs._coins(key)[0] for key in range(50)} == {"", "safe"}
    assert {retain._coins(key)[0] for key in range(50)} == {"image"}
