"""What a job's start costs: CPU seconds of the imports of each script, and how many more without `importing`.

    python benchmarks/imports.py                                  every script that has a stage of its own, 5 times each
    python benchmarks/imports.py --quick                          3 times each, of the scripts that most jobs run
    python benchmarks/imports.py --scripts score features

A process a start, as in a run: Python, what stands at the script's top and what it imports for its stage; then the
process ends. Both ways are taken in turns; CPU seconds (user and system) hardly see what else runs beside it.
"""

import argparse
import ast
import os
import random
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from timing import print_ratios, print_table

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "workflow/scripts"
MOST = ("benchmark_prompts", "render_benchmark", "features", "train_expert", "merge_experts", "score", "report")


def imports_of(script: str, resting: bool) -> str:
    """The imports of a script alone, in `importing` as they are there or without it."""
    tree = ast.parse((SCRIPTS / f"{script}.py").read_text())
    top = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    within = [
        node for node in ast.walk(tree) if isinstance(node, ast.With) and "importing" in ast.unparse(node.items[0])
    ]
    parts = within if resting else [line for node in within for line in node.body]
    return "\n".join([*top, *map(ast.unparse, parts)])


def cpu_of(code: str) -> float:
    """CPU seconds of a Python that runs the code and ends."""
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, stderr=subprocess.DEVNULL)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--scripts", nargs="*", help="names of workflow/scripts/")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--quick", action="store_true", help="3 repeats, the scripts that most jobs run")
    args = parser.parse_args()
    every = [path.stem for path in sorted(SCRIPTS.glob("*.py")) if "importing()" in path.read_text()]
    names, repeats = args.scripts or (MOST if args.quick else every), args.repeats or (3 if args.quick else 5)
    starts = [(name, resting) for name in names for resting in (True, False)]
    found: dict[tuple[str, bool], list[float]] = {start: [] for start in starts}
    for _ in range(repeats):
        random.shuffle(starts)
        for name, resting in starts:
            found[name, resting].append(cpu_of(imports_of(name, resting)))
    median = {start: statistics.median(values) for start, values in found.items()}
    rows = [[name, *(f"{median[name, resting]:.2f}" for resting in (False, True))] for name in names]
    print_table(["script", "collector on, CPU s", "as it is, CPU s"], rows)
    print_ratios({name: median[name, True] / median[name, False] for name in names})


if __name__ == "__main__":
    main()
