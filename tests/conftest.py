"""Shared fixtures."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from snakes import Workdir


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workdir:
    """A finished run of the reduced demo; tests must not change it (copy it)."""
    work = Workdir(tmp_path_factory.mktemp("run") / "reduced")
    done = work.run("--show-failed-logs")
    assert done.returncode == 0, done.stdout
    return work
