"""Several processes: a signal to all of them ends the job with a checkpoint; none outlives a killed one."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tiny import train_config


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


@pytest.mark.parametrize("killed", ["job", "launcher"])
def test_no_process_outlives_the_one_that_launched_it(tmp_path, killed):
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "lock").touch()
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("at-work-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    job = psutil.Process(process.pid)
    (launcher,) = job.children()
    others = job.children(recursive=True)
    assert {int(path.name.split("-")[2]) for path in tmp_path.glob("at-work-*")} < {other.pid for other in others}
    {"job": job, "launcher": launcher}[killed].kill()
    process.wait(30)
    _, left = psutil.wait_procs(others, timeout=30)
    for other in left:
        other.kill()
    assert left == []


LAUNCHER = """
import sys
from safetydpo.running.launch import launch
lock = open(sys.argv[1] + "/lock")
launch("worker", {"folder": sys.argv[1]}, 2, lock.fileno())
"""
WORKER = """
import os, sys, time
from pathlib import Path
from safetydpo.running.launch import read_job
Path(read_job(sys.argv[1])["folder"], f"at-work-{os.getpid()}").touch()
time.sleep(600)
"""
