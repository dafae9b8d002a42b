"""Several processes for one training: accelerate's launcher around a job that is described in a file."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetydpo.errors import SafetyDPOError

JOB, ERROR = "job.json", "error.txt"


def launch(module: str, job: dict[str, Any], processes: int) -> None:
    """Run `python -m module FOLDER` in `processes` processes; FOLDER holds job.json, and error.txt where one fails.

    SIGTERM and Ctrl-C are passed on. SafetyDPOError with the sentence of the process that failed.
    """
    with tempfile.TemporaryDirectory(prefix="safetydpo-") as folder:
        (Path(folder) / JOB).write_text(json.dumps(job))
        threads = max(1, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)) // processes)
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
        command += ["--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0", "--num_cpu_threads_per_process", str(threads)]
        command += ["--module", module, folder]
        child = subprocess.Popen(command, stdout=sys.stdout, stderr=sys.stderr)
        before = {
            number: signal.signal(number, lambda got, _: child.send_signal(got))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            status = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if status:
            said = Path(folder) / ERROR
            raise SafetyDPOError(
                said.read_text() if said.exists() else f"A training process ended with status {status}: see the log."
            )


def read_job(folder: str) -> dict[str, Any]:
    """The job that `launch` described."""
    return json.loads((Path(folder) / JOB).read_text())


def report_error(folder: str, error: SafetyDPOError) -> None:
    """Leave the sentence for the process that launched this one; the first one stays."""
    path = Path(folder) / ERROR
    if not path.exists():
        path.write_text(str(error))
