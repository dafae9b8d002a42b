"""What a user of a cluster is told."""

import pytest

from safetydpo.errors import SafetyDPOError
from safetydpo.running.cluster import advice, refuse_without_slurm


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("SLURM-job '113' failed, SLURM status is: 'TIMEOUT'.", "resources.runtime"),
        ("slurmstepd-vm: error: Exceeded job memory limit", "resources.mem_mb"),
        ("SLURM-job '9' failed, SLURM status is: 'OUT_OF_MEMORY'.", "resources.mem_mb"),
        ("SLURM status is: 'CANCELLED'", "cancelled"),
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination",
            "slurm_account",
        ),
        ("The given account nobody appears to be invalid. Available accounts:", "slurm_account"),
        ("sbatch: error: invalid partition specified: nowhere", "slurm/partitions.yaml"),
        ("sbatch: error: Memory specification can not be satisfied", "No node has"),
    ],
)
def test_each_failure_has_its_sentence(said, wanted):
    (sentence,) = advice(f"Building DAG\n{said}\nFinished")
    assert wanted in sentence


def test_a_run_that_failed_by_itself_gets_no_advice_about_clusters():
    assert advice("Error in rule train_expert:\n  the account of runtime and memory is long") == []


def test_a_machine_without_slurm_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SafetyDPOError, match=r"sbatch, squeue, scancel not found.*--cores N"):
        refuse_without_slurm()
    for name in ("sbatch", "squeue", "scancel"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    refuse_without_slurm()
