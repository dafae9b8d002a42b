"""`safetydpo summary` and `seeds` of folders that are no whole runs."""

import shutil

import pandas as pd
import pytest
from snakes import ROOT

from safetydpo.cli import main
from safetydpo.report.inputs import METRICS
from safetydpo.storage.files import write_parquet

ROW = dict.fromkeys(METRICS, "a") | {"value": 1.0, "ci_low": 0.0, "ci_high": 1.0, "n": 1, "seed": 0}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "has no metrics.parquet: run snakemake first": shutil.rmtree,
    "/metrics.parquet is not a whole Parquet file": lambda run: cut(run / "metrics.parquet"),
    "/metrics.parquet has no column benchmark": lambda run: write_parquet([{"value": 1.0}], run / "metrics.parquet"),
    "/metrics.parquet: 1 of 1 values are NaN or infinite": lambda run: write_parquet(
        [ROW | {"value": float("nan")}], run / "metrics.parquet"
    ),
    "/config.yaml is missing": lambda run: (run / "config.yaml").unlink(),
    "/config.yaml is no whole config of a run": lambda run: cut(run / "config.yaml"),
}


@pytest.mark.parametrize("command", ["summary", "seeds"])
@pytest.mark.parametrize("message", DAMAGES)
def test_what_is_no_whole_run_is_a_sentence(tmp_path, capsys, command, message):
    run = tmp_path / "run"
    write_parquet(pd.DataFrame([ROW]), run / "metrics.parquet")
    shutil.copy(ROOT / "config/config.yaml", run)
    DAMAGES[message](run)
    with pytest.raises(SystemExit) as ended:
        main([command, str(run)])
    assert f"{run}{' ' if message[0] != '/' else ''}{message}" in str(ended.value.code)
    assert capsys.readouterr().out == ""
