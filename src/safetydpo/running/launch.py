"""Several processes for one training: accelerate's launcher around a job that is described in a file."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetydpo.errors import SafetyDPOError

JOB, ERROR, ALIVE = "job.json", "error.txt", "alive"


def launch(module: str, job: dict[str, Any], processes: int, lock: int) -> None:
    """Run `python -m module FOLDER` in `processes` processes; FOLDER holds job.json, and error.txt where one fails.

    SIGTERM and Ctrl-C are passed on. Should this process be killed alone, the others end too; until then the launcher
    holds the file `lock`. SafetyDPOError with the sentence of the process that failed.
    """
    with tempfile.TemporaryDirectory(prefix="safetydpo-") as name, _alive(Path(name) / ALIVE):
        folder = Path(name)
        (folder / JOB).write_text(json.dumps(job))
        # or a user's own accelerate config would be used
        settings = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "gpu_ids": "all"}
        settings |= {"num_machines": 1, "machine_rank": 0, "num_processes": processes, "mixed_precision": "no"}
        (folder / "accelerate.yaml").write_text(json.dumps(settings))
        threads = str(max(1, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)) // processes))
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "accelerate.yaml")]
        command += ["--main_process_port", "0", "--num_cpu_threads_per_process", threads, "--module", module, name]
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "300"  # seconds to finish a batch and save after a signal
        # a session of its own: a terminal's Ctrl-C reaches this process, which passes it on once
        child = subprocess.Popen(
            command, stdout=sys.stdout, stderr=sys.stderr, env=environment, start_new_session=True, pass_fds=[lock]
        )
        status = _wait(child)
        if status:
            said = folder / ERROR
            raise SafetyDPOError(
                said.read_text() if said.exists() else f"A training process ended with status {status}: see the log."
            )


@contextmanager
def _alive(pipe: Path) -> Iterator[None]:
    """A named pipe that this process alone can write to, and never does: its readers hear when it is gone."""
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR)  # O_WRONLY would wait for a reader
    try:
        yield
    finally:
        os.close(end)


def _end_with(pipe: Path) -> None:
    """Kill this process when the one that holds `pipe` is gone, however it ended."""
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # without NONBLOCK it would wait for a writer that is gone
    os.set_blocking(end, True)

    def watch() -> None:
        os.read(end, 1)
        os.kill(os.getpid(), signal.SIGKILL)  # others may wait for this one in a collective: nothing gentler ends all

    threading.Thread(target=watch, daemon=True).start()


def _wait(child: subprocess.Popen[bytes]) -> int:
    """The status of the child; signals that come meanwhile are passed on to it."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda got, _: child.send_signal(got)) for number in numbers}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_job(folder: str) -> dict[str, Any]:
    """The job that `launch` described; from here on this process ends when the one that launched it does."""
    if (pipe := Path(folder) / ALIVE).exists():  # not where somebody wrote the job by hand
        _end_with(pipe)
    return json.loads((Path(folder) / JOB).read_text())


def report_error(folder: str, error: SafetyDPOError) -> None:
    """Leave the sentence for the process that launched this one; the first one stays."""
    path = Path(folder) / ERROR
    if not path.exists():
        path.write_text(str(error))
