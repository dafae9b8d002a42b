"""Checkpoint files: whole, the newest two, refused when of another config."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.checkpoints import Checkpoints

MADE = {"train": {"beta": 250.0, "preserve": {"weight": 1.0}}, "seed": 0}


def saved(folder, numbers, made=MADE):
    states = Checkpoints(folder, made)
    return [states.save(n, {"x": torch.full((1000,), float(n)), "rows": [{"step": n}]}) for n in numbers]


def test_the_newest_two_are_kept(tmp_path):
    saved(tmp_path, [5, 10, 15])
    assert [p.name.split("-")[1] for p in sorted(tmp_path.iterdir())] == ["0000010", "0000015"]
    number, state = Checkpoints(tmp_path, MADE).load() or (0, {})
    assert number == 15
    assert state["x"].tolist() == [15.0] * 1000
    assert state["rows"] == [{"step": 15}]


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "empty"])
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, capsys, damage):
    newest = saved(tmp_path, [5, 10])[-1]
    data = bytearray(newest.read_bytes())
    if damage == "a flipped bit":
        data[len(data) // 2] ^= 1
    newest.write_bytes({"truncated": data[: len(data) // 2], "empty": b""}.get(damage, data))
    number, _ = Checkpoints(tmp_path, MADE).load() or (0, {})
    assert number == 5
    assert f"WARNING: checkpoint {newest} is damaged; going on from the one before it." in capsys.readouterr().out


def test_all_damaged_or_none_starts_over(tmp_path):
    assert Checkpoints(tmp_path / "nowhere", MADE).load() is None
    for path in saved(tmp_path, [5, 10]):
        path.write_bytes(b"x")
    assert Checkpoints(tmp_path, MADE).load() is None


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"train": {"beta": 300.0, "preserve": {"weight": 1.0}}, "seed": 0}, "train.beta = 250.0, this run has 300.0"),
        ({"train": {"beta": 250.0, "preserve": {"weight": 2.0}}, "seed": 0}, "train.preserve.weight = 1.0"),
        ({"train": {"beta": 250.0, "preserve": {"weight": 1.0}}}, r"seed = 0, this run has None: .*start over\."),
    ],
)
def test_another_config_is_refused_by_key(tmp_path, made, said):
    saved(tmp_path, [5])
    with pytest.raises(SafetyDPOError, match=said) as error:
        Checkpoints(tmp_path, made).load()
    assert f"delete the folder {tmp_path}" in str(error.value)


def test_damaged_and_unfinished_files_take_no_place(tmp_path):
    old, damaged = saved(tmp_path, [5, 10])
    damaged.write_bytes(b"x")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    unfinished(tmp_path, gone.pid)
    states = Checkpoints(tmp_path, MADE)
    states.load()
    new = states.save(8, {})
    assert sorted(tmp_path.iterdir()) == sorted([old, new])


def unfinished(folder, process):
    """What a process leaves of a state while it writes."""
    path = folder / f".step-0000011-abc.pt.{process}@{socket.gethostname()[:40]}.tmp"
    path.write_bytes(b"half of a state")
    return path


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    theirs = unfinished(tmp_path, os.getppid())
    states = Checkpoints(tmp_path, MADE)
    states.save(8, {})
    assert theirs.exists()
    states.clear()
    assert [*tmp_path.iterdir()] == [theirs]


def test_a_computation_that_is_done_leaves_no_folder(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/log").touch()
    folder = tmp_path / "results/checkpoints/ring"
    saved(folder, [5])
    Checkpoints(folder, MADE, "reference-unsafe").save(2, {})
    Checkpoints(folder, MADE).clear()
    assert [*(tmp_path / "results").iterdir()] == [tmp_path / "results/log"]
    Checkpoints(folder, MADE).clear()  # nothing was ever saved


def test_stems_do_not_meet(tmp_path):
    saved(tmp_path, [5])
    assert Checkpoints(tmp_path, MADE, "reference-unsafe").load() is None
