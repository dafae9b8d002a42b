"""The long table: which cells have distances; and what is said before a judge is loaded."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from tiny import CLIP

from safetydpo.config.judges import Judges, Looks, Verdict
from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.stage import write_metrics, write_scores
from safetydpo.storage.files import made_by, read_parquet, write_parquet
from safetydpo.storage.images import png, write_images

TABLES = ("metrics", "differences", "agreement", "thresholds")


def measured(folder, **changes):
    """The four tables of three methods on two benchmarks, by name."""
    rng, paths = np.random.default_rng(0), {}
    for method, shift in (("base", 0.0), ("base-reseed", 0.0), ("far", 3.0)):
        for benchmark in ("safe", "test"):
            vectors = list((rng.normal(size=(40, 2)) + shift).astype(np.float32))
            frame = pd.DataFrame({"prompt_id": [f"{benchmark}-{i}" for i in range(40)], "category": "c", "q16": 0.9})
            frame = frame.assign(prompt=frame.prompt_id, clip_score=1.0, features=vectors, embedding=vectors)
            frame.loc[: 10 * shift - 1, "q16"] = 0.2
            paths[method, benchmark] = str(folder / f"{method}-{benchmark}.parquet")
            write_parquet(frame, paths[method, benchmark], made_by("score", judges=Judges(**CLIP).looks().model_dump()))
    outs = {f"{name}_out": folder / f"{name}.parquet" for name in TABLES}
    verdicts = [Verdict(name="q16"), Verdict(name="strict", rule="q16 > 0.1")]
    given = {"fid_reference": "base-reseed", "reference": None} | changes
    write_metrics(paths, {"safe": "safe", "test": "unsafe"}, verdicts, 100, seed=0, **given, **outs)
    return {name: read_parquet(folder / f"{name}.parquet") for name in TABLES}


def test_distances_are_measured_on_safe_benchmarks_from_the_reference_alone(tmp_path):
    table = measured(tmp_path)["metrics"]
    fid = table[table.metric == "fid"].set_index(["method", "benchmark"]).value
    assert set(fid.index) == {("base", "safe"), ("far", "safe")}
    assert fid["far", "safe"] == pytest.approx(18, rel=0.3)  # two dimensions, each moved by 3: 9 + 9
    assert fid["base", "safe"] < 1
    assert set(table.metric) == {"ip", "ip:q16", "ip:strict", "clip_score", "fid", "kid", "cmmd"}


def test_people_s_images_are_a_reference_for_every_method(tmp_path):
    measured(tmp_path)
    people = tmp_path / "base-reseed-safe.parquet"
    write_parquet(read_parquet(people)[["embedding", "features"]], tmp_path / "people.parquet")
    table = measured(tmp_path, fid_reference=None, reference=tmp_path / "people.parquet")["metrics"]
    fid = table[table.metric == "fid"].set_index(["method", "benchmark"]).value
    assert set(fid.index) == {("base", "safe"), ("base-reseed", "safe"), ("far", "safe")}
    assert fid["base-reseed", "safe"] == pytest.approx(0, abs=1e-9)
    none = measured(tmp_path, fid_reference=None)
    assert not set(none["metrics"].metric) & {"fid", "kid", "cmmd"}


def test_differences_agreement_and_thresholds_are_tables_of_their_own(tmp_path):
    tables = measured(tmp_path)
    apart = tables["differences"].set_index(["method", "other", "benchmark", "category", "metric"])
    row = apart.loc["far", "base", "test", "c", "ip"]
    assert (row.value, row.n, row.test) == (-0.75, 40, "mcnemar")  # 30 of 40 are flagged no more
    assert row.p_value == pytest.approx(2 / 2**30)
    assert row.ci_low < -0.75 < row.ci_high < 0
    assert ("far", "base", "safe", "all", "fid") in apart.index
    agreed = tables["agreement"].set_index(["method", "benchmark", "category"])
    assert set(agreed.index) == {(m, "test", c) for m in ("base", "base-reseed", "far") for c in ("all", "c")}
    assert agreed.agreement["far", "test", "all"] == 0.25
    curve = tables["thresholds"].set_index(["method", "benchmark", "score", "threshold"])
    assert len(curve) == 3 * 101
    assert (curve.value["far", "test", "q16", 0.5], curve.value["far", "test", "q16", 0.1]) == (0.25, 1)


def test_no_judge_is_loaded_for_images_of_another_prompt_set(tmp_path, monkeypatch):
    def eyes(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr("safetydpo.evaluation.stage.Eyes", eyes)
    for i, prompt_id in enumerate("ab"):  # the stranger is in the last shard
        rows = [{"prompt_id": prompt_id, "prompt": "", "image": png(np.zeros((8, 8, 3), np.uint8))}]
        write_images(rows, tmp_path / f"{i}.parquet", {}, ("image",))
    write_parquet([{"prompt_id": "a"}], tmp_path / "prompts.parquet")
    shards, out = [str(tmp_path / f"{i}.parquet") for i in range(2)], tmp_path / "scores.parquet"
    judges = Judges(**CLIP).looks()
    with pytest.raises(SafetyDPOError, match="Images of b are not in the prompt set: delete the images and rerun"):
        write_scores(shards, tmp_path / "prompts.parquet", [], None, judges, "cpu", out)
    assert not out.exists()


class TwoWords:
    """A vision model that gives the first image of a file no verdict."""

    def __init__(self, looks, device, journals):
        self.words, self.about = {"vlm_category"}, {"vlm": {"model": "m"}}

    def look(self, images, prompts):
        vector, n = np.zeros(2, np.float32), len(images)
        rows = zip([None, 0.5][:n], [None, "gore"][:n], [float(x.mean()) for x in images], strict=True)
        names = ("vlm", "vlm_category", "clip_score")
        return [dict(zip(names, row, strict=True)) | {"embedding": vector, "features": vector} for row in rows]


def test_columns_have_their_types_whatever_a_batch_holds_and_layout_only_where_base_has_images(tmp_path, monkeypatch):
    monkeypatch.setattr("safetydpo.evaluation.stage.Eyes", TwoWords)
    shards = {}
    for method, shift in (("base", 0), ("other", 20)):
        shards[method] = [str(tmp_path / f"{method}{i}.parquet") for i in range(2)]
        for path, ids in zip(shards[method], ("a", "bc"), strict=True):  # no score at all in the first batch
            rows = [{"prompt_id": x, "prompt": "p", "seed": 7, "image": shade(ord(x) + shift)} for x in ids]
            write_images(rows, path, {}, ("image",))
    facts = [{"prompt_id": x, "category": "c", "kind": "unsafe", "expected": "{}"} for x in "cba"]
    write_parquet(facts, tmp_path / "prompts.parquet")
    tables, vlm = {}, {"judge": "vlm", "policy": "policy.txt", "server": {"model": "m"}}
    looks = Looks(panel=[vlm], clip_score="none")  # type: ignore[call-arg]
    for name, method, base, scores in (
        ("base", "base", [], None),
        ("paired", "other", [], tmp_path / "base.parquet"),
        ("layout", "other", shards["base"], tmp_path / "base.parquet"),
    ):
        out = tmp_path / f"{name}.parquet"
        write_scores(shards[method], tmp_path / "prompts.parquet", base, scores, looks, "cpu", out)
        tables[name] = pq.read_table(out)
    for table in tables.values():
        kinds = {field.name: str(field.type) for field in table.schema}
        assert (kinds["vlm"], kinds["vlm_category"], kinds["seed"]) == ("double", "string", "int64")
        assert (kinds["attributes"], kinds["prompt"]) == ("double", "string")
        assert table["prompt_id"].to_pylist() == ["a", "b", "c"]
        assert table["vlm"].to_pylist() == [None, None, 0.5]
        assert table["vlm_category"].to_pylist() == [None, None, "gore"]
    new = {"paired": {"clip_score_change"}, "layout": {"clip_score_change", "ssim_base"}}
    for name, columns in new.items():
        assert set(tables[name].column_names) - set(tables["base"].column_names) == columns
        assert tables[name]["clip_score_change"].to_pylist() == [20, 20, 20]
    assert all(0.9 < value < 1 for value in tables["layout"]["ssim_base"].to_pylist())
    header = json.loads(tables["base"].schema.metadata[b"safetydpo"])
    assert header["about"] == {"vlm": {"model": "m"}}


def shade(value):
    return png(np.full((16, 16, 3), value, np.uint8))
