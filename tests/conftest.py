"""Shared fixtures."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # a core for each of pytest's processes

import pytest
from filelock import FileLock
from llm import RUNNING
from snakes import Workdir


@pytest.fixture(autouse=True)
def _no_server_outlives_its_test():
    yield
    while RUNNING:
        RUNNING.pop().stop()


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workdir:
    """A finished run of the reduced demo; tests must not change it (copy it)."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(base / "reduced.lock"):  # the first of pytest's processes makes it, the others wait
        work = Workdir(base / "reduced")
        done = work.run("--show-failed-logs")
    assert done.returncode == 0, done.stdout
    return work


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Model section of a tiny random-weight pipeline."""
    from tiny import make_pipeline

    return make_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(scope="session")
def tiny_features(tiny, tmp_path_factory):
    """Three rendered and encoded pairs: paths of prompts, pairs and features."""
    import pandas as pd
    from tiny import ROLES

    from safetydpo.features.stage import write_features
    from safetydpo.images.stage import render_pairs
    from safetydpo.storage.files import write_parquet

    folder = tmp_path_factory.mktemp("pairs")
    rows = [
        {"pair_id": f"p{i}", "unsafe_prompt": f"a red {s} and a brulo", "safe_prompt": f"a red {s}"}
        for i, s in enumerate(("circle", "star", "square"))
    ]
    write_parquet(pd.DataFrame(rows), folder / "prompts.parquet")
    render_pairs(folder / "prompts.parquet", tiny, 0, 1, 0, folder / "pairs.parquet")
    write_features(
        [str(folder / "pairs.parquet")],
        folder / "prompts.parquet",
        ROLES,
        tiny,
        folder / "features.safetensors",
        flip=True,
    )
    return folder
