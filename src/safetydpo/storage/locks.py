"""One process at a time in a folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(folder: Path | str) -> Iterator[int]:
    """Wait until no other process of this machine works in `folder`: a killed scheduler leaves its jobs running.

    Yields the descriptor of the lock, which may be handed on to child processes.
    """
    path = Path(folder) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another job works in {folder} (of this run, or left by an earlier one): waiting for it to end.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield lock.fileno()
