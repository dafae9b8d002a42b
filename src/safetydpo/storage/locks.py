"""One process at a time in a folder, which goes with the last of what lay in it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from safetydpo.errors import SafetyDPOError


@contextmanager
def alone(folder: Path | str) -> Iterator[int]:
    """Wait until no other process of this machine works in `folder`: a killed scheduler leaves its jobs running.

    Yields the descriptor of the lock, which may be handed on to child processes. A folder that is empty at the end is
    removed, and the one around it where that is empty too.
    """
    path = Path(folder) / "lock"
    with _locked(path) as lock:
        try:
            yield lock.fileno()
        finally:
            with suppress(OSError):
                if [*path.parent.iterdir()] == [path]:
                    path.unlink()
                    remove_empty(path.parent)


def _locked(path: Path) -> TextIO:
    """The lock file, open and ours; SafetyDPOError where it cannot be made."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        except FileNotFoundError:  # removed by the one before us, between the two lines
            continue
        except OSError as error:
            raise SafetyDPOError(
                f"Cannot write {path}: {error.strerror}. Make the folder writable, then rerun."
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                f"Another job works in {path.parent} (of this run, or left by an earlier one): waiting for it to end."
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            return lock  # a file system without locks
        if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
            return lock
        lock.close()  # the one before us removed it, and a third may have made it anew


def remove_empty(folder: Path) -> None:
    """Remove a folder, and the one around it, where nothing is in them."""
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()
