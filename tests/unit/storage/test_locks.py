"""One process at a time in a folder."""

import subprocess
import sys

import pytest

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.locks import alone


def test_one_training_waits_for_another_in_the_same_folder(tmp_path):
    code = (
        f"import time; from safetydpo.storage.locks import alone\n"
        f"with alone({str(tmp_path / 'c')!r}): print('in', flush=True); time.sleep(0.5)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    with alone(tmp_path / "c"):
        assert other.wait() == 0
        assert (tmp_path / "c/lock").exists()  # the other's was removed with its folder when it ended
        third = subprocess.run([sys.executable, "-c", f"{TAKEN}{str(tmp_path / 'c/lock')!r})"], check=False)
        assert third.returncode == 1
    assert not (tmp_path / "c").exists()


TAKEN = """
import fcntl, sys
def take(path):
    try:
        fcntl.flock(open(path), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(1)
take("""


def test_a_folder_with_something_in_it_stays(tmp_path):
    with alone(tmp_path / "c"):
        (tmp_path / "c/kept").touch()
    assert (tmp_path / "c/kept").exists()
    with alone(tmp_path / "c"):
        (tmp_path / "c/kept").unlink()
    assert not (tmp_path / "c").exists()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(SafetyDPOError, match=r"Cannot write .*file/c/lock: Not a directory"),
        alone(tmp_path / "file/c"),
    ):
        pass
