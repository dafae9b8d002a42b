"""What make says."""

import fcntl
import shutil
import subprocess

from snakes import ROOT


def test_a_second_make_demo_says_why_it_ends(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "envs/constraints.txt", ".venv/installed"):  # the last is the newest
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    command = ["make", "--directory", str(tmp_path), "demo", "SNAKEMAKE=echo starts", "BIN=missing"]
    with (tmp_path / ".venv/installed").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.startswith("make demo or demo-world runs here already: wait for it.\n")
    assert "\nstarts" not in done.stdout
    assert "\nstarts --nolock" in subprocess.run(command, capture_output=True, text=True).stdout
