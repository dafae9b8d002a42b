"""A training that is killed goes on and ends as one that was not: real processes, real signals."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import DEVICES, train_config

from safetydpo.models.lora import FILE
from safetydpo.running.launch import ERROR, JOB

STEPS, EVERY = 240, 4


@pytest.fixture
def job(tiny, tiny_features, tmp_path):
    """Folder of a job with every random choice in it, and the folder of its checkpoints."""
    config = train_config(
        steps=STEPS,
        checkpoint_every=EVERY,
        gradient_accumulation_steps=2,
        caption_dropout=0.3,
        flip=0.5,
        condition="both",
        lr_scheduler="cosine",
    )

    def write(name, device="cpu"):
        folder = tmp_path / name
        folder.mkdir()
        values = {"features": [str(tiny_features / "features.safetensors")], "retain": None, "seed": 3, "name": "ring"}
        values |= {"model": tiny.model_dump() | {"device": device}, "train": config.model_dump(), "steps": STEPS}
        values |= {"out": str(folder / "out"), "checkpoints": str(folder / "checkpoints")}
        (folder / JOB).write_text(json.dumps(values))
        return folder

    return write


def start(folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "safetydpo.training.stage", str(folder)], env=environment)


def steps_kept(folder):
    return max((int(p.name.split("-")[1]) for p in (folder / "checkpoints").glob("step-*.pt")), default=0)


def wait_for(process, folder, step):
    while steps_kept(folder) < step:
        assert process.poll() is None, "ended before it was to be killed"
        time.sleep(0.002)


def results(folder):
    log = pd.read_parquet(folder / "out/training.parquet").drop(columns="pairs_per_s")  # a time, not a result
    return load_file(folder / "out" / FILE), log


@pytest.mark.parametrize("device", DEVICES)
def test_killed_three_times_and_terminated_once_it_ends_bit_identical(job, device):
    whole, killed = job("whole", device), job("killed", device)
    undisturbed = start(whole)
    moments = sorted(random.sample(range(2, STEPS - 80), 3))
    print("killed after steps", moments)
    for moment in moments:
        process = start(killed)
        wait_for(process, killed, max(moment, steps_kept(killed) + 1))  # each start gets further
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    process = start(killed)
    wait_for(process, killed, steps_kept(killed) + EVERY)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 1
    said = (killed / ERROR).read_text()
    assert said.startswith(f"Ended by SIGTERM; {steps_kept(killed)} of {STEPS} steps of ring are kept")
    assert not (killed / "out").exists()
    assert start(killed).wait() == 0
    assert undisturbed.wait() == 0
    (weights, log), (expected_weights, expected_log) = results(killed), results(whole)
    assert list(log.step) == list(range(STEPS))
    pd.testing.assert_frame_equal(log, expected_log, check_exact=True)
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weights[k], expected_weights[k]) for k in weights)
    assert not list((killed / "checkpoints").glob("*.pt"))  # done: nothing to go on from
