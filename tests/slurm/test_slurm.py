"""The reduced demo through a real Slurm, and what goes wrong on clusters. Opt-in: tests/slurm/run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file
from snakes import REDUCED, ROOT

pytestmark = pytest.mark.skipif("SAFETYDPO_SLURM" not in os.environ, reason="needs a Slurm: tests/slurm/run")

RUN = Path("results/reduced")
# What is different from the reduced demo: everything that renders or trains asks for a (pretended) GPU.
GPU = {"resources": {"gpu": 1, "mem_mb": 2000, "runtime": 10}}
LORA = "pytorch_lora_weights.safetensors"


class Cluster:
    """A clone-like folder in which `snakemake --profile slurm` is typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("Snakefile", "workflow", "config", "envs", "slurm", "resources"):
            if not (folder / name).exists():
                (folder / name).symlink_to(ROOT / name)

    def copy(self, folder: Path) -> "Cluster":
        """The same state in another folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Cluster(folder)

    def start(self, *args: str, changes: dict | None = None, profile: tuple[str, ...] = ("--profile", "slurm")):
        """Start snakemake; its output goes to snakemake.txt."""
        overlay = self.folder / "changes.yaml"
        overlay.write_text(yaml.safe_dump(GPU | (changes or {})))
        command = [sys.executable, "-m", "snakemake", *profile, *args, "--configfile", str(REDUCED), str(overlay)]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=(self.folder / "snakemake.txt").open("w"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )

    def run(self, *args: str, timeout: int = 900, **more) -> tuple[int, str]:
        """Run snakemake to its end: status and output."""
        status = self.start(*args, **more).wait(timeout)
        return status, self.said

    @property
    def said(self) -> str:
        """What snakemake has printed."""
        return (self.folder / "snakemake.txt").read_text()

    def path(self, name: str) -> Path:
        """A file of the run."""
        return self.folder / RUN / name


QUICK = ("--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "10")


def until(test, seconds: float, what: str) -> None:
    """Wait until `test()` is true."""
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, f"timed out: {what}"
        time.sleep(0.3)


def queue(states: str = "PENDING,RUNNING,COMPLETING") -> list[str]:
    """Ids of the jobs in the queue."""
    done = subprocess.run(["squeue", "-h", "-o", "%i", "-t", states], capture_output=True, text=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Cluster:
    """A whole run through Slurm."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "done")
    status, said = cluster.run(*QUICK)
    assert status == 0, said
    return cluster


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Cluster:
    """The same run without Slurm."""
    folder = Cluster(tmp_path_factory.mktemp("local") / "done")
    status, said = folder.run(profile=("--cores", "2"))
    assert status == 0, said
    return folder


def same_table(one: Path, other: Path) -> None:
    """Equal but for measured speed."""
    tables = [pd.read_parquet(path) for path in (one, other)]
    pd.testing.assert_frame_equal(
        *(t.drop(columns=[c for c in t if c.endswith("_per_s") or c == "seconds"]) for t in tables)
    )


def test_a_run_through_slurm_gives_what_a_local_run_gives(done, local):
    files = [p.relative_to(local.folder) for p in sorted((local.folder / RUN).rglob("*")) if p.is_file()]
    compared = [p for p in files if p.suffix in (".parquet", ".safetensors")]
    assert len(compared) > 60
    for name in compared:
        if name.suffix == ".parquet":
            same_table(done.folder / name, local.folder / name)
        else:
            tensors, others = load_file(done.folder / name), load_file(local.folder / name)
            assert list(tensors) == list(others), name
            assert all((tensors[key] == others[key]).all() for key in tensors), name


def test_jobs_with_gpus_run_in_the_gpu_partition_and_see_theirs(done):
    log = (done.folder / "logs/reduced/train_expert/ring.log").read_text()
    assert "CUDA_VISIBLE_DEVICES 0" in log or "CUDA_VISIBLE_DEVICES 1" in log
    assert "CUDA_VISIBLE_DEVICES" not in (done.folder / "logs/reduced/metrics.log").read_text()
    assert "Auto-selected partition 'gpu' for job train_expert" in done.said
    assert "Auto-selected partition 'cpu' for job score" in done.said


def retrained(done: Cluster, folder: Path, *args: str, changes: dict) -> tuple[int, str, Cluster]:
    """Train the expert of ring again with other settings."""
    cluster = done.copy(folder)
    for name in (LORA, "training.parquet", "README.md"):
        cluster.path(f"experts/ring/{name}").unlink()
    status, said = cluster.run(*QUICK, *args, str(RUN / "experts/ring" / LORA), changes=changes)
    return status, said, cluster


def test_a_job_over_its_memory_gets_more_at_its_next_try(done, tmp_path):
    changes = {"resources": GPU["resources"] | {"mem_mb": 500}}
    status, said, cluster = retrained(done, tmp_path / "memory", changes=changes)
    assert status == 0, said
    assert "Trying to restart job" in said
    weights, others = (load_file(c.path(f"experts/ring/{LORA}")) for c in (cluster, done))
    assert all((weights[key] == others[key]).all() for key in weights)


def test_a_training_over_its_time_goes_on_from_its_checkpoint(done, tmp_path):
    train = {"steps": 1200, "checkpoint_every": 50}
    changes = {"train": train, "resources": GPU["resources"] | {"runtime": 1}}
    status, said, cluster = retrained(done, tmp_path / "time", changes=changes)
    assert status == 0, said
    assert "TIMEOUT" in said
    assert "going on after step" in (cluster.folder / "logs/reduced/train_expert/ring.log").read_text()
    _, _, whole = retrained(done, tmp_path / "whole", changes={"train": train})
    weights, others = (load_file(c.path(f"experts/ring/{LORA}")) for c in (cluster, whole))
    assert all((weights[key] == others[key]).all() for key in weights)


def test_two_gpus_train_in_two_processes(done, tmp_path):
    status, said, cluster = retrained(done, tmp_path / "two", changes={"train": {"gpus": 2}})
    assert status == 0, said
    log = (cluster.folder / "logs/reduced/train_expert/ring.log").read_text()
    assert "CUDA_VISIBLE_DEVICES 0,1" in log
    assert "2 processes" in log


def test_a_cancelled_job_is_said_and_ends_the_run(done, tmp_path):
    cluster = done.copy(tmp_path / "cancelled")
    cluster.path(f"experts/ring/{LORA}").unlink()
    target = str(RUN / "experts/ring" / LORA)
    running = cluster.start(*QUICK, "--retries", "0", target, changes={"train": {"steps": 20_000}})
    until(lambda: queue("RUNNING"), 120, "no job runs")
    time.sleep(5)
    subprocess.run(["scancel", *queue()], check=True)
    assert running.wait(180) != 0
    assert "CANCELLED" in cluster.said
    assert queue() == []


def test_a_killed_scheduler_goes_on_without_redoing_anything(done, tmp_path):
    cluster = Cluster(tmp_path / "killed")
    running = cluster.start(*QUICK)
    until(lambda: cluster.path("pairs/ring/0.parquet").exists(), 300, "no pairs")
    running.send_signal(signal.SIGKILL)
    running.wait()
    until(lambda: not queue(), 300, "jobs of the killed run do not end")
    kept = {p: p.stat().st_mtime_ns for p in (cluster.folder / RUN).rglob("*.parquet")}
    assert kept
    assert cluster.run("--unlock")[0] == 0
    status, said = cluster.run(*QUICK)
    assert status == 0, said
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    same_table(cluster.path("metrics.parquet"), done.path("metrics.parquet"))


def test_a_controller_that_is_away_for_twenty_seconds_loses_nothing(tmp_path):
    cluster = Cluster(tmp_path / "away")
    running = cluster.start(*QUICK)
    until(lambda: cluster.path("pairs/ring/0.parquet").exists(), 300, "no pairs")
    pid = subprocess.run(["pgrep", "-x", "slurmctld"], capture_output=True, text=True).stdout.split()
    subprocess.run(["kill", *pid], check=True)
    time.sleep(20)
    subprocess.run([str(ROOT / "tests/slurm/cluster"), "start"], check=True)
    assert running.wait(900) == 0, cluster.said


def refused(cluster: Cluster, *args: str, **more) -> tuple[int, str]:
    """Run a job that Slurm will not take."""
    cluster.path("baselines/uce/weights.safetensors").unlink()
    return cluster.run(*QUICK, "--retries", "0", *args, str(RUN / "baselines/uce/weights.safetensors"), **more)


def test_an_unknown_partition_is_a_sentence_and_leaves_no_job(done, tmp_path):
    cluster = done.copy(tmp_path / "partition")
    (cluster.folder / "partitions.yaml").write_text("partitions: {nowhere: {max_gpu: 1}}\n")
    status, said = refused(cluster, "--slurm-partition-config", "partitions.yaml")
    assert status != 0
    assert "nowhere" in said
    assert "Slurm does not know the partition: name those of your cluster" in said
    assert "Traceback" not in said
    assert queue() == []


def test_an_unknown_account_is_a_sentence_and_leaves_no_job(done, tmp_path):
    cluster = done.copy(tmp_path / "account")
    site = cluster.folder / "profiles/default/config.yaml"
    site.parent.mkdir(parents=True)
    site.write_text("default-resources: {slurm_account: nobody, mem_mb: 2000, runtime: 30}\n")
    status, said = refused(cluster)
    assert status != 0
    assert "Slurm does not know the account: set default-resources: slurm_account" in said
    assert "Traceback" not in said
    assert queue() == []


def test_more_than_any_node_has_is_a_sentence_and_leaves_no_job(done, tmp_path):
    changes = {"resources": GPU["resources"] | {"mem_mb": 64_000}}
    status, said = refused(done.copy(tmp_path / "large"), changes=changes)
    assert status != 0
    assert "No node has what a job asks for" in said
    assert "Traceback" not in said
    assert queue() == []


def test_shards_go_out_as_a_job_array(done, tmp_path):
    cluster = done.copy(tmp_path / "array")
    shards = [f"{folder}/{k}" for folder in ("pairs/ring", "pairs/cross") for k in (0, 1)]
    for name in shards:
        cluster.path(f"{name}.parquet").unlink()
    targets = [str(RUN / f"{name}.parquet") for name in shards]
    status, said = cluster.run(*QUICK, "--slurm-array-jobs", "render_pairs", *targets)
    assert status == 0, said
    assert "array" in said
    for name in shards:
        same_table(cluster.path(f"{name}.parquet"), done.path(f"{name}.parquet"))


def test_short_jobs_share_a_wait_in_the_queue(done):
    logs = {path.name for path in (done.folder / "logs/slurm").iterdir()}
    assert {"group_merge_coactivation_merge_experts", "group_report_metrics_report"} <= logs
