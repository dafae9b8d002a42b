"""Seconds that a dry run of the full-size workflow takes, and whether it imports torch.

    python benchmarks/dag.py

SD 1.5 at the published sizes: 7 categories, 15,690 pairs in 16 shards a category, every method on every benchmark in 16
shards. Concepts do not show in the DAG.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from timing import print_ratios, print_table

ROOT = Path(__file__).resolve().parents[1]
# Runs Snakemake in this process and then says on the last line what was imported.
PROGRAM = """
import json, sys
from snakemake.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(json.dumps({"status": end.code or 0, "torch": "torch" in sys.modules}))
"""


def full_size(shards: int) -> dict:
    """What differs from config/sd15.yaml: every method, four benchmarks, shards."""
    methods = ["base", "base-reseed", "negative-prompt", "sld-weak", "sld-medium", "sld-strong", "sld-max", "esd-u"]
    strategies = ["co-merge", "mean", "linear", "svd", "ties", "dare-ties", "magnitude-prune"]
    methods += ["esd-x", "uce", "all-single", *(f"merged-{name}" for name in strategies)]
    overlay = yaml.safe_load((ROOT / "config/sd15.yaml").read_text())
    ud = {"name": "ud", "kind": "unsafe", "source": "file", "path": "data/ud.csv"}
    benchmarks = [*overlay["benchmarks"], ud]
    cells = [
        {"methods": methods, "benchmarks": [b["name"] for b in benchmarks]},
        {"methods": ["experts"], "benchmarks": [benchmarks[0]["name"]]},
    ]
    return {
        "prompts": {"pairs": 2242},
        "pairs": {"shards": shards},
        "merge": {"strategies": strategies},
        "benchmarks": benchmarks,
        "evaluate": {"n": 30000, "shards": shards, "matrix": cells},
    }


def main() -> None:
    """Time the dry run and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        changes = Path(folder) / "full.yaml"
        changes.write_text(yaml.safe_dump(full_size(args.shards)))
        command = [sys.executable, "-c", PROGRAM, "--snakefile", str(ROOT / "Snakefile"), "--directory", folder]
        command += ["--dry-run", "--quiet", "rules", "--configfile", str(ROOT / "config/sd15.yaml"), str(changes)]
        begin = time.perf_counter()
        done = subprocess.run(command, text=True, capture_output=True)
        seconds = time.perf_counter() - begin
    said = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"status": done.returncode}
    if said["status"]:
        sys.exit(done.stderr)
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE))
    print_table(["rule", "jobs"], [list(row) for row in jobs.items()])
    print_ratios({"seconds": seconds, "torch_imported": str(said["torch"])})


if __name__ == "__main__":
    main()
