"""Several processes are one larger batch."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from tiny import samples, train_config

from safetydpo.features.sets import read_features
from safetydpo.models.lora import load_factors
from safetydpo.storage.files import read_parquet
from safetydpo.training.samples import Share
from safetydpo.training.stage import train_expert

COMMON = {"gradient_accumulation_steps": 2, "caption_dropout": 0.3, "flip": 0.5, "learning_rate": 1e-3}


def test_parts_of_a_batch_are_the_batch(tiny, tiny_features):
    features = read_features([tiny_features / "features.safetensors"], tiny.id)
    for config in (train_config(), train_config(reference="cached", draws=4)):
        whole = samples(features, config, batch_size=4)
        parts = [samples(features, config, batch_size=2, share=Share(rank, 2)) for rank in range(2)]
        for turn in range(5):
            assert parts[0].pick(turn) + parts[1].pick(turn) == whole.pick(turn)
        assert parts[0].drawn(5) == whole.drawn(5) if config.reference == "cached" else True


@pytest.mark.parametrize("reference", ["exact", "cached"])
def test_two_processes_of_batch_b_train_as_one_of_batch_2b(tiny, tiny_features, tmp_path, reference):
    paths = [str(tiny_features / "features.safetensors")]
    sizes = {"one": (4, 1), "two": (2, 2), "less": (2, 1)}
    for name, (batch_size, gpus) in sizes.items():
        config = train_config(**COMMON, batch_size=batch_size, gpus=gpus, reference=reference)
        where = {"out": tmp_path / name, "checkpoints": tmp_path / "checkpoints" / name}
        train_expert(paths, None, tiny, config, steps=4, seed=0, name="ring", **where)
    one, two, less = (torch.cat([b.ravel() for _, b in load_factors(tmp_path / n).values()]) for n in sizes)
    first, second = (torch.cat([a.ravel() for a, _ in load_factors(tmp_path / n).values()]) for n in ("one", "two"))
    assert ((first - second).norm() / first.norm()).item() < 1e-4
    # B starts at zero, and Adam divides by the gradient's size, so that the rounding of tiny gradients shows in it
    assert ((one - two).norm() / one.norm()).item() < 5e-3
    assert ((one - less).norm() / one.norm()).item() > 0.2  # another batch is another result
    logs = [read_parquet(tmp_path / name / "training.parquet") for name in ("one", "two")]
    assert logs[1].grad_norm[0] == pytest.approx(logs[0].grad_norm[0], rel=1e-4)
    for column in ("loss", "winner_error", "reference_loser_error", "margin", "grad_norm", "lr"):
        assert logs[1][column].tolist() == pytest.approx(logs[0][column].tolist(), rel=1e-3, abs=1e-5), (
            column
        )  # beta 5000 magnifies


def test_several_processes_end_with_a_checkpoint_when_all_are_signalled(tiny, tiny_features, tmp_path):
    """As Slurm does at the walltime: every process of the job gets the signal."""
    config = train_config(gpus=2, batch_size=1, checkpoint_every=5)
    values = {"features": [str(tiny_features / "features.safetensors")], "train": config.model_dump()}
    values |= {"model": tiny.model_dump(), "checkpoints": str(tmp_path / "c"), "out": str(tmp_path / "out")}
    (tmp_path / "values.json").write_text(json.dumps(values))
    process = subprocess.Popen([sys.executable, "-c", JOB, str(tmp_path / "values.json")], stderr=subprocess.PIPE)
    while not list((tmp_path / "c").glob("step-*.pt")):
        assert process.poll() is None
        time.sleep(0.05)
    for child in [process.pid, *(p.pid for p in psutil.Process(process.pid).children(recursive=True))]:
        os.kill(child, signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 1
    kept = max(int(p.name.split("-")[1]) for p in (tmp_path / "c").glob("step-*.pt"))
    assert f"Ended by SIGTERM; {kept} of 5000 steps of x are kept" in said.decode().splitlines()[-1]


JOB = """
import json, sys
from safetydpo.config.model import Model
from safetydpo.config.training import Train
from safetydpo.errors import SafetyDPOError
from safetydpo.training.stage import train_expert
v = json.load(open(sys.argv[1]))
model, config = Model(**v.pop("model")), Train(**v.pop("train"))
try:
    train_expert(v.pop("features"), None, model, config, steps=5000, seed=0, name="x", **v)
except SafetyDPOError as error:
    sys.exit(str(error))
"""
