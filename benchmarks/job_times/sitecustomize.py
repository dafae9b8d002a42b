"""Python imports this at its start where the folder is on PYTHONPATH: by it benchmarks/demo.py sees how jobs live.

A job writes one line of JSON into $JOB_TIMES when it ends: its script, CPU seconds inside import statements, CPU
seconds in all (its children's too) and peak memory.
"""

import atexit
import builtins
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

_import, _seen = builtins.__import__, {"depth": 0, "cpu": 0.0}


def _timed(*args: Any, **kwargs: Any) -> Any:
    """Python's import, the outermost of a nest timed."""
    _seen["depth"] += 1
    begin = time.thread_time()
    try:
        return _import(*args, **kwargs)
    finally:
        _seen["depth"] -= 1
        if not _seen["depth"]:
            _seen["cpu"] += time.thread_time() - begin


def _write(folder: str) -> None:
    path = Path(sys.argv[0])
    whole = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    facts = {
        "script": path.stem.split(".")[-1] if path.parent.name == "scripts" else "snakemake",
        "imports": _seen["cpu"],
        "cpu": sum(used.ru_utime + used.ru_stime for used in whole),
        "gigabytes": whole[0].ru_maxrss / 1e6,
    }
    with open(Path(folder) / f"{os.getpid()}-{time.time_ns()}.json", "w") as file:  # numbers of processes come again
        json.dump(facts, file)


if _folder := os.environ.get("JOB_TIMES"):
    builtins.__import__ = _timed
    atexit.register(_write, _folder)
