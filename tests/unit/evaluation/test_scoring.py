"""From scores of images to rows of the long table, on scores written out by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.metrics import distances, summarise
from safetydpo.evaluation.scoring import METRICS, Base, look_at
from safetydpo.evaluation.stage import write_metrics
from safetydpo.storage.files import read_parquet, write_parquet
from safetydpo.storage.images import png

SCORES = pd.DataFrame(
    {
        "category": ["ring", "ring", "ring", "cross"],
        "seen_mark": ["ring", "cross", "none", "leaf"],
        "flagged": [True, True, False, False],
        "clip_score": [30.0, 20.0, 10.0, 40.0],
        "attributes": [1.0, 0.5, None, 0.0],
    }
)


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("ip", [1, 1, 0, 0]),
        ("own_mark", [1, 0, 0, 0]),
        ("any_mark", [1, 1, 0, 1]),
        ("benign_mark", [0, 0, 0, 1]),
        ("garbage", [0, 0, 0, 0]),
    ],
)
def test_metrics_of_single_images(metric, values):
    assert METRICS[metric](SCORES).tolist() == values


def test_a_summary_has_all_images_and_each_category():
    rows = {(r["category"], r["metric"]): r for r in summarise(SCORES, 200, 0)}
    assert rows["all", "ip"]["value"] == 0.5
    assert rows["ring", "ip"]["value"] == pytest.approx(2 / 3)
    assert rows["cross", "clip_score"]["value"] == 40
    assert (rows["all", "attributes"]["value"], rows["all", "attributes"]["n"]) == (0.5, 3)  # one is unknown
    assert ("all", "ssim_base") not in rows  # was not measured
    assert ("all", "any_mark") not in {
        (r["category"], r["metric"]) for r in summarise(SCORES.drop(columns="seen_mark"), 200, 0)
    }


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


class FakeEyes:
    """Sees the colour red and no mark in every picture; CLIPScore is the picture's first pixel."""

    def look(self, images, prompts):
        return [
            {"seen_colour": "red", "seen_shape": "star", "seen_mark": "none", "clip_score": float(x[0, 0, 0])}
            for x in images
        ]


def shown(values, ids):
    cells = [png(np.full((16, 16, 3), v, np.uint8)) for v in values]
    return pd.DataFrame({"prompt_id": list(ids), "prompt": "p", "seed": 0, "image": cells})


def facts(ids, expected):
    return pd.DataFrame(
        {"prompt_id": list(ids), "category": "c", "kind": "safe", "expected": [json.dumps(e) for e in expected]}
    )


def beside(ids):
    """Base's images of prompts, the first with CLIPScore 7, the second 90."""
    scores = pd.DataFrame({"prompt_id": list(ids), "clip_score": [7.0, 90.0]})
    return Base(scores, [shown([7], ids[0]), shown([90], ids[1])])


def rows_of(batches):
    return pd.DataFrame([row for batch in batches for row in batch])


def test_scores_are_joined_by_prompt_not_by_row():
    prompts = facts("ba", [{"colour": "blue", "shape": "star"}, {"colour": "red", "mark": "leaf"}])
    scores = rows_of(look_at(FakeEyes(), [shown([50], "a"), shown([60], "b")], prompts, beside("ab")))
    assert scores.prompt_id.tolist() == ["a", "b"]
    assert scores.clip_score_change.tolist() == [50 - 7, 60 - 90]
    assert scores.attributes.tolist() == [1.0, 0.5]  # a: red is right; b: star is, blue is not
    assert scores.mark_right[0] == 0  # a asks for a leaf
    assert np.isnan(scores.mark_right[1])  # b says nothing of marks


def test_a_method_on_fewer_prompts_meets_bases_images_of_them():
    scores = rows_of(look_at(FakeEyes(), [shown([60], "b")], facts("ab", [{}, {}]), beside("ab")))
    assert scores.clip_score_change.tolist() == [60 - 90]
    assert scores.ssim_base[0] > 0.6  # flat images of brightness 60 and 90


def test_a_prompt_that_base_has_no_image_of_is_named():
    with pytest.raises(SafetyDPOError, match="The base model has no image of prompt c"):
        rows_of(look_at(FakeEyes(), [shown([1], "c")], facts("abc", [{}] * 3), beside("ab")))


def test_images_of_another_prompt_set_are_refused():
    with pytest.raises(SafetyDPOError, match="Images of b are not in the prompt set"):
        rows_of(look_at(FakeEyes(), [shown([1, 2], "ab")], facts("a", [{}])))


def test_images_are_read_as_they_are_needed():
    asked = []

    def endless():
        while True:
            asked.append(len(asked))
            yield shown([1], "a")

    batches = look_at(FakeEyes(), endless(), facts("a", [{}]))
    for done in range(1, 4):
        assert len(next(batches)) == 1
        assert len(asked) == done + 1  # one batch is decoded ahead


def test_a_prompt_of_two_categories_counts_in_both():
    rows = pd.DataFrame({"category": ["a|b", "b"], "flagged": [True, False], "clip_score": [1.0, 3.0]})
    found = {(r["category"], r["metric"]): (r["value"], r["n"]) for r in summarise(rows, 100, 0)}
    assert found["all", "ip"] == (0.5, 2)
    assert (found["a", "ip"], found["b", "ip"]) == ((1.0, 1), (0.5, 2))
