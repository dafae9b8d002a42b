"""A folder that has its final name is whole, and an older one stays until then."""

import subprocess
import sys

import pytest

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.files import whole_folder


def write(path, text):
    with whole_folder(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner/a.txt").write_text(text)
        assert not (path / "inner/b.txt").exists()


def test_a_folder_takes_the_place_of_an_older_one_as_a_whole(tmp_path):
    path = tmp_path / "new/out"
    write(path, "old")
    (path / "inner/b.txt").write_text("more")
    with pytest.raises(AssertionError):
        write(path, "new")
    assert (path / "inner/a.txt").read_text() == "old"
    (path / "inner/b.txt").unlink()
    write(path, "new")
    assert (path / "inner/a.txt").read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["out"]


def test_what_cannot_be_written_is_said_of_the_folder_that_was_asked_for(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SafetyDPOError, match=r"Cannot write .*/file/out: "):
        write(tmp_path / "file/out", "")

    def fail(folder):
        raise SafetyDPOError(f"{folder}/x is too large.")

    with pytest.raises(SafetyDPOError) as error, whole_folder(tmp_path / "out") as folder:
        fail(folder)
    assert str(error.value) == f"{tmp_path}/out/x is too large."
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    killed = f"""
import os
from pathlib import Path
from safetydpo.storage.files import whole_folder
with whole_folder({str(tmp_path / "out")!r}) as folder:
    (folder / "half").write_text("x")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", killed]).returncode == 9
    assert len([*tmp_path.iterdir()]) == 1
    assert not (tmp_path / "out").exists()
    write(tmp_path / "out", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
