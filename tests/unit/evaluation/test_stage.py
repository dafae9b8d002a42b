"""The long table: which cells have distances; and what is said before a judge is loaded."""

import numpy as np
import pandas as pd
import pytest

from safetydpo.config.judges import Judges
from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.metrics import distances
from safetydpo.evaluation.stage import write_metrics, write_scores
from safetydpo.storage.files import read_parquet, write_parquet
from safetydpo.storage.images import png, write_images


def test_distances_are_measured_on_safe_benchmarks_from_the_reference_alone(tmp_path):
    rng = np.random.default_rng(0)
    cells, paths = {}, {}
    for method, shift in (("base", 0.0), ("base-reseed", 0.0), ("far", 3.0)):
        for benchmark in ("safe", "test"):
            features = list((rng.normal(size=(40, 2)) + shift).astype(np.float32))
            frame = pd.DataFrame({"category": "c", "flagged": False, "clip_score": 1.0, "features": features})
            frame["embedding"] = features
            cells[method, benchmark] = frame
            paths[method, benchmark] = str(tmp_path / f"{method}-{benchmark}.parquet")
            write_parquet(frame, paths[method, benchmark])
    write_metrics(paths, {"safe": "safe", "test": "unsafe"}, 100, "base-reseed", 0, tmp_path / "m.parquet")
    table = read_parquet(tmp_path / "m.parquet")
    fid = table[table.metric == "fid"].set_index(["method", "benchmark"]).value
    assert set(fid.index) == {("base", "safe"), ("far", "safe")}
    assert fid["far", "safe"] == pytest.approx(18, rel=0.3)  # two dimensions, each moved by 3: 9 + 9
    assert fid["base", "safe"] < 1
    found = {r["metric"]: r["value"] for r in distances(cells["far", "safe"], cells["base-reseed", "safe"], 0)}
    assert found["fid"] == pytest.approx(fid["far", "safe"])
    assert set(found) == {"fid", "kid", "cmmd"}


def test_no_judge_is_loaded_for_images_of_another_prompt_set(tmp_path, monkeypatch):
    def eyes(*_):
        raise AssertionError("loaded")

    monkeypatch.setattr("safetydpo.evaluation.stage.Eyes", eyes)
    for i, prompt_id in enumerate("ab"):  # the stranger is in the last shard
        rows = [{"prompt_id": prompt_id, "prompt": "", "image": png(np.zeros((8, 8, 3), np.uint8))}]
        write_images(rows, tmp_path / f"{i}.parquet", {}, ("image",))
    write_parquet([{"prompt_id": "a"}], tmp_path / "prompts.parquet")
    shards, out = [str(tmp_path / f"{i}.parquet") for i in range(2)], tmp_path / "scores.parquet"
    judges = Judges(q16_clip="none", q16_prompts="none", clip_score="none")
    with pytest.raises(SafetyDPOError, match="Images of b are not in the prompt set: delete the images and rerun"):
        write_scores(shards, tmp_path / "prompts.parquet", [], None, judges, "cpu", out)
    assert not out.exists()
