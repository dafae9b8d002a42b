"""Where the demo's time goes: by script, what jobs work and what they only import.

    python benchmarks/demo.py                                            the default run, in a temporary folder
    python benchmarks/demo.py --configfile config/demo-flow.yaml --cores 2
    python benchmarks/demo.py --until tune_scale

Runs Snakemake in a new folder with links to config/ and resources/, so no result that is there is used. Every job says
how many CPU seconds it took and how many of them inside import statements (`job_times/sitecustomize.py`); what
Snakemake itself took is what is left of the whole. Nothing else should run beside it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from timing import print_ratios, print_table

ROOT = Path(__file__).resolve().parents[1]


def lives(folder: Path) -> pd.DataFrame:
    """A row a job: script, imports and cpu (CPU seconds), gigabytes; Snakemake's own processes are `snakemake`."""
    return pd.DataFrame([json.loads(path.read_text()) for path in folder.glob("*.json")])


def by_script(jobs: pd.DataFrame) -> list[list[str]]:
    """Rows of the table, the longest first."""
    groups = jobs.groupby("script").agg(
        jobs=("cpu", "size"), cpu=("cpu", "sum"), imports=("imports", "sum"), gigabytes=("gigabytes", "max")
    )
    return [
        [str(name), f"{row.jobs:.0f}", f"{row.imports:.0f}", f"{row.cpu - row.imports:.0f}", f"{row.gigabytes:.2f}"]
        for name, row in groups.sort_values("cpu", ascending=False).iterrows()
    ]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--configfile", nargs="*", default=[], help="on top of config/config.yaml")
    parser.add_argument("--until", nargs="*", default=[], help="rules to end at")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, times = Path(name), Path(name) / "times"
        times.mkdir()
        for part in ("config", "resources"):
            (folder / part).symlink_to(ROOT / part)
        command = [sys.executable, "-m", "snakemake", "--scheduler", "greedy", "--cores", str(args.cores)]
        command += ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
        command += ["--configfile", *(str(Path(path).resolve()) for path in args.configfile)] if args.configfile else []
        command += ["--until", *args.until] if args.until else []
        paths = [str(Path(__file__).parent / "job_times"), *filter(None, [os.environ.get("PYTHONPATH")])]
        changes = {"JOB_TIMES": str(times), "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
        begin = time.monotonic()
        if subprocess.run(command, env=os.environ | changes).returncode:
            sys.exit("the run failed")
        wall, used = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        jobs = lives(times)
    jobs = jobs[jobs.script != "snakemake"]
    whole = used.ru_utime + used.ru_stime
    print_table(["script", "jobs", "imports, CPU s", "work, CPU s", "peak GB of one"], by_script(jobs))
    print_ratios(
        {
            "minutes": wall / 60,
            "cpu_minutes": whole / 60,
            "share_imports": jobs.imports.sum() / whole,
            "share_snakemake": 1 - jobs.cpu.sum() / whole,
            "share_of_cores_that_worked": whole / wall / args.cores,
        }
    )


if __name__ == "__main__":
    main()
