"""Cached references against the frozen model."""

import os
import signal

import pytest
import torch
from tiny import samples, train_config

from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import read_features
from safetydpo.running.interrupts import Interrupt
from safetydpo.storage.checkpoints import Checkpoints
from safetydpo.training.losses import squared_error
from safetydpo.training.reference import References
from safetydpo.training.samples import RETAIN_ROLES
from safetydpo.training.trainer import Objective, make_accelerator


def terms_of(denoiser, pairs, config, turn=0):
    return Objective(denoiser, pairs, None, config).terms(turn)


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


def test_cached_references_of_pairs_and_retain_are_those_of_their_draws(denoiser, features, harmless):
    config = train_config(reference="cached", draws=25)
    pairs, retain = samples(features, config), samples(harmless, config, RETAIN_ROLES, 2)
    objective = Objective(denoiser, pairs, retain, config)
    objective.remember(20, make_accelerator(config, torch.device("cpu")))
    errors, predictions = objective.known
    for draw in (pairs.drawn(20)[3], pairs.drawn(20)[-1]):
        batch = pairs.noised(denoiser, [draw])
        expected = squared_error(denoiser.reference(batch), batch.target)  # winner, loser
        assert torch.allclose(errors.recall([draw])[0], expected, rtol=1e-4)
    for draw in retain.drawn(20)[:2]:
        batch = retain.noised(denoiser, [draw])
        assert torch.allclose(predictions.recall([draw]), denoiser.reference(batch), atol=1e-5)


def test_an_answer_that_is_not_a_number_ends_the_job(denoiser, features):
    config = train_config(reference="cached", draws=1)
    features.shards[0]["safe_mean"][2] = torch.nan  # the winner's error of p2, of three pairs' two errors
    objective = Objective(denoiser, samples(features, config), None, config)
    said = "The frozen model's answers on p0, p1, p2: 1 of 6 values are NaN or infinite; check model.id"
    with pytest.raises(SafetyDPOError, match=said):
        objective.remember(5, make_accelerator(config, torch.device("cpu")))


def test_an_interrupted_reference_goes_on_where_it_was(tiny, tiny_features, denoiser, tmp_path):
    config = train_config(reference="cached", draws=9)
    pairs = samples(read_features([tiny_features / "features.safetensors"], tiny.id), config)
    accelerator, states = make_accelerator(config, torch.device("cpu")), Checkpoints(tmp_path, {}, "reference-unsafe")
    whole, first, second = (References(pairs, turns=40) for _ in range(3))
    whole.remember(denoiser, accelerator)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SafetyDPOError, match=r"Ended by SIGTERM; 1 of \d batches"):
            first.remember(denoiser, accelerator, states, interrupt)
    asked = []
    denoiser.policy, reference = None, denoiser.reference
    denoiser.reference = lambda batch: asked.append(len(batch.timesteps) // 2) or reference(batch)
    second.remember(denoiser, accelerator, states)
    assert sum(asked) == len(pairs.drawn(40)) - 8  # batches of 4 x 2 draws, one of which was kept
    assert torch.equal(second.known, whole.known)
