"""Batches made one turn ahead in a thread: the same in every bit, and errors come where they belong."""

import threading

import pytest
import torch
from tiny import samples, train_config

from safetydpo.training.ahead import Ahead
from safetydpo.training.samples import RETAIN_ROLES
from safetydpo.training.trainer import Objective, Trainer, make_accelerator


def test_turns_are_made_one_ahead_and_never_two_at_once():
    made, going = [], threading.Lock()
    ready = {turn: threading.Event() for turn in range(9)}

    def make(turn):
        assert going.acquire(blocking=False)
        made.append((turn, threading.current_thread() is threading.main_thread()))
        going.release()
        ready[turn].set()
        return turn * turn

    ahead = Ahead(make)
    for turn in (0, 1, 2, 5, 6):  # somebody leaves some out
        assert ahead(turn) == turn * turn
        assert ready[turn + 1].wait(10)  # nobody has asked for it yet
    ahead.close()
    assert made == [(turn, False) for turn in (0, 1, 2, 3, 5, 6, 7)]


def test_an_error_is_raised_where_its_turn_is_asked_for_and_the_thread_ends():
    def make(turn):
        if turn == 2:
            raise ValueError("the features of turn 2")
        return turn

    ahead = Ahead(make)
    assert [ahead(0), ahead(1)] == [0, 1]  # while 2 has failed already
    with pytest.raises(ValueError, match="the features of turn 2"):
        ahead(2)
    ahead.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]


@pytest.mark.parametrize("reference", ["exact", "cached"])
def test_a_thread_changes_no_bit_of_a_training(make, features, harmless, reference):
    options = {"caption_dropout": 0.3, "condition": "both", "gradient_accumulation_steps": 2}
    config = train_config(anchor=5, preserve={"weight": 7, "batch_size": 2}, reference=reference, draws=3, **options)
    found = []
    for threaded in (False, True):
        pairs, retain = samples(features, config), samples(harmless, config, RETAIN_ROLES, 2)
        objective = Objective(make(config), pairs, retain, config)
        if threaded:
            objective.batches = Ahead(objective._batch)
        log = Trainer(objective, 4, "x", make_accelerator(config, torch.device("cpu"))).fit()
        weights = torch.cat([p.detach().ravel() for p in objective.denoiser.parameters])
        found.append((log.drop(columns="pairs_per_s"), weights))
    assert found[0][0].equals(found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]  # `fit` has ended it
