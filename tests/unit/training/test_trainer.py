"""The objective's terms and the trainer's options, on the tiny pipeline."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import assert_goes_on, fit, make_pipeline, samples, train_config

from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import Features
from safetydpo.training import lean_layers
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.losses import squared_error
from safetydpo.training.samples import PAIR_ROLES, RETAIN_ROLES
from safetydpo.training.trainer import Objective, Trainer, make_accelerator

CPU = torch.device("cpu")


@pytest.fixture
def untrained(tiny):
    made = Denoiser(tiny)
    made.add_adapter(train_config(), seed=0)
    return made


def terms_of(denoiser, pairs, config, turn=0):
    return Objective(denoiser, pairs, None, config).terms(turn)


def test_the_first_loss_is_ln_2(untrained, features):
    config = train_config(beta=5000)
    terms = terms_of(untrained, samples(features, config), config)
    assert terms["preference_loss"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert terms["winner_error"].item() == pytest.approx(terms["reference_winner_error"].item(), abs=1e-6)


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


@pytest.mark.parametrize("reference", ["exact", "cached"])
def test_the_anchor_draws_the_unsafe_prompt_to_the_frozen_models_safe_one(denoiser, features, harmless, reference):
    config = train_config(anchor=5, preserve={"weight": 7, "batch_size": 3}, reference=reference, draws=3)
    pairs, retain = samples(features, config), samples(harmless, config, RETAIN_ROLES, 3)
    objective = Objective(denoiser, pairs, retain, config)
    if reference == "cached":
        objective.remember(4, make_accelerator(config, CPU))
    terms, picked = objective.terms(3), pairs.pick(3)
    batch = pairs.noised(denoiser, picked)
    safe = features.condition([draw.sample for draw in picked] * 2, ["safe"] * 2 * len(picked))
    frozen = denoiser.reference(replace(batch, condition=safe))
    gap = (denoiser.predict(batch) - frozen).square().mean().item()
    assert gap > 1e-4
    assert terms["anchor_loss"].item() == pytest.approx(gap, rel=1e-4)
    whole = terms["preference_loss"] + 7 * terms["preserve_loss"] + 5 * terms["anchor_loss"]
    assert terms["loss"].item() == pytest.approx(whole.item(), rel=1e-5)
    alone = Objective(denoiser, pairs, retain, config.model_copy(update={"anchor": 0.0}))
    alone.known = objective.known[:2]
    assert alone.terms(3)["preference_loss"].item() == pytest.approx(terms["preference_loss"].item(), rel=1e-5)


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


def test_sft_lowers_the_winners_error(make, features):
    config = train_config(loss="sft", reference="cached", draws=1, batch_size=3, learning_rate=1e-2, caption_dropout=0)
    log = fit(make(config), samples(features, config), None, config, 12)
    assert log.winner_error.iloc[-1] < 0.97 * log.winner_error.iloc[0]


def test_the_learning_rate_warms_up_and_scales_with_the_effective_batch(tiny, features):
    denoiser = Denoiser(tiny)
    config = train_config(learning_rate=1e-5, scale_lr=True, gradient_accumulation_steps=3, warmup_steps=2)
    denoiser.add_adapter(config, seed=0)
    log = fit(denoiser, samples(features, config), None, config, 4)
    # 1e-5 x batch 2 x accumulation 3 = 6e-5, reached after 2 steps of a line from 0
    assert log.lr.tolist() == pytest.approx([0, 3e-5, 6e-5, 6e-5])


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
        assert denoiser.network.is_gradient_checkpointing == on
        Objective(denoiser, samples(features, config), None, config).terms(0)["loss"].backward()
        grads.append(torch.cat([p.grad.ravel() for p in denoiser.parameters]))
    assert torch.allclose(grads[0], grads[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adafactor"},
        {"lr_scheduler": "cosine", "reference": "cached", "anchor": 3, "target_modules": ["to_q", "conv1"]},
    ],
)
def test_a_new_process_goes_on_bit_identical(make, features, tmp_path, changes):
    config = train_config(checkpoint_every=2, batch_size=2, caption_dropout=0.3, **changes)
    assert_goes_on(make, features, config, tmp_path, steps=7, killed_in=5)


def test_a_weight_that_gets_no_gradient_is_named(tiny, features, monkeypatch):
    monkeypatch.setattr(lean_layers, "_large_and_frozen", lambda _: True)  # a LoRA's own convolutions too
    config = train_config(target_modules=["to_q", "conv_shortcut"])
    denoiser = Denoiser(tiny)
    denoiser.add_adapter(config, 0)
    shortcuts = sum(name.endswith("conv_shortcut") for name, _ in denoiser.network.named_modules())
    weights = len(denoiser.parameters)
    said = rf"x: {2 * shortcuts} of {weights} weights that are to train get no gradient, first .*conv_shortcut.lora_A"
    with pytest.raises(SafetyDPOError, match=said):
        fit(denoiser, samples(features, config), None, config, 1)


@pytest.mark.parametrize(("most", "expected"), [(None, None), (1e-3, 1e-3)])
def test_gradients_are_clipped_where_the_config_says_so(make, features, most, expected):
    config = train_config(max_grad_norm=most, optimizer="adafactor")
    trainer = Trainer(
        Objective(make(config), samples(features, config), None, config), 1, "x", make_accelerator(config, CPU)
    )
    seen = []
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.ravel() for p in trainer.denoiser.parameters]).norm().item())
    )
    row = trainer.step(0)
    assert row["grad_norm"] > 1e-2
    assert seen == pytest.approx([expected or row["grad_norm"]], rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])  # the first is fused
def test_a_step_that_loss_scaling_skips_moves_neither_weights_nor_schedule(make, features, monkeypatch, optimizer):
    """fp16 as on a GPU: torch's own gradient scaler on the CPU; the gradient of the second step overflows."""
    config = train_config(optimizer=optimizer, warmup_steps=4, learning_rate=4e-3)
    accelerator = make_accelerator(config, CPU)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    trainer = Trainer(Objective(make(config), samples(features, config), None, config), 4, "x", accelerator)
    accelerator.native_amp = True
    monkeypatch.setattr(type(accelerator), "mixed_precision", "fp16")
    weight = trainer.denoiser.parameters[0]
    calls = iter([1.0, math.inf, 1.0, 1.0])
    weight.register_hook(lambda gradient: gradient * next(calls))
    rates, weights, scales = [], [], []
    for step in range(4):
        rates.append(trainer.step(step)["lr"])
        weights.append(torch.cat([p.detach().ravel().clone() for p in trainer.denoiser.parameters]))
        scales.append(accelerator.scaler.get_scale())
    assert scales == [256, 128, 128, 128]
    assert rates == pytest.approx([0, 1e-3, 1e-3, 2e-3])  # a line to 4e-3 in 4 steps, which waits at the skipped one
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_any_term_that_is_not_finite_ends_the_training(untrained, features):
    config = train_config()
    objective = Objective(untrained, samples(features, config), None, config)
    terms = objective.terms
    objective.terms = lambda turn: terms(turn) | {"margin": torch.tensor(math.inf)}  # its loss, -log sigmoid, is 0
    with pytest.raises(SafetyDPOError, match="x: the margin is not finite at step 0"):
        Trainer(objective, 1, "x", make_accelerator(config, CPU)).fit()


def test_a_loss_that_is_not_finite_names_step_and_pairs(untrained, features):
    features.shards[0]["safe_mean"][1] = torch.inf
    config = train_config(batch_size=3)
    with pytest.raises(
        SafetyDPOError, match=r"x: the loss is not finite at step 0 \(p1\): the frozen model's errors are not"
    ):
        fit(untrained, samples(features, config), None, config, 2)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    model = make_pipeline(tmp_path / "p")
    tensors = {f"{r}_{s}": torch.randn(1, 4, 8, 8).abs() for r in PAIR_ROLES for s in ("mean", "std")}
    tensors |= {f"{r}_caption": torch.zeros(1, dtype=torch.long) for r in PAIR_ROLES}
    features = Features(["a"], [{**tensors, "encoder_hidden_states": torch.randn(2, 16, 16)}])
    config = train_config(batch_size=1, steps=1)
    denoiser = Denoiser(model)
    denoiser.add_adapter(config, 0)
    denoiser.parameters[1].register_hook(lambda g: g * torch.nan)  # a gradient overflows in the last step
    with pytest.raises(SafetyDPOError, match=r"x: the gradient is not finite at step 0 \(a\): lower train"):
        fit(denoiser, samples(features, config), None, config, 1)
