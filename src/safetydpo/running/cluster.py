"""What a user of a cluster is told in our own words: before anything is submitted, and after a run that failed."""

import re
import shutil

from safetydpo.errors import SafetyDPOError

SITE = "profiles/default/config.yaml (docs/cluster.md)"
# What Slurm or Snakemake prints -> what to do about it.
ADVICE = {
    r"status is: 'TIMEOUT'|DUE TO TIME LIMIT": "A job ran out of time: raise resources.runtime (minutes), or give the "
    "same command again: a training goes on from its newest checkpoint.",
    r"status is: 'OUT_OF_MEMORY'|[Ee]xceeded job memory limit|oom[-_]kill": "A job ran out of memory, at its last try "
    "too: raise resources.mem_mb, or `retries`, each of which asks for more.",
    r"status is: 'CANCELLED'": "A job was cancelled: the same command goes on from here.",
    r"status is: '(NODE_FAIL|PREEMPTED|BOOT_FAIL)'": "A node failed or was taken back: the same command goes on from "
    "here.",
    r"[Ii]nvalid account|account \S+ appears to be invalid": "Slurm does not know the account: set default-resources: "
    f"slurm_account in {SITE}.",
    r"[Ii]nvalid partition": "Slurm does not know the partition: name those of your cluster in slurm/partitions.yaml, "
    f"or in a file of your own that {SITE} names.",
    r"[Mm]emory specification can not be satisfied|node configuration is not available|CPU count .*satisfied": "No "
    "node has what a job asks for: lower resources.mem_mb, threads or gpu in the config, or give the partitions their "
    "limits in slurm/partitions.yaml.",
}


def refuse_without_slurm() -> None:
    """SafetyDPOError where Slurm's commands are not to be found: before any job."""
    missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        raise SafetyDPOError(
            f"Slurm is not on this machine ({', '.join(missing)} not found): log in to a node that can submit jobs, or "
            "run here with `snakemake --cores N` instead of `--profile slurm`."
        )


def advice(said: str) -> list[str]:
    """What to do about the failures that a run's log tells of, a sentence each."""
    return [sentence for pattern, sentence in ADVICE.items() if re.search(pattern, said)]
