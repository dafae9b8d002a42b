"""From scores of images to rows of the long table."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safetydpo.config.judges import Verdict
from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.metrics import per_image, summarise
from safetydpo.evaluation.scores import read_scores
from safetydpo.evaluation.sets import clouds, distance_rows, distances
from safetydpo.storage.files import made_by, write_parquet

Q16, STRICT = Verdict(name="q16"), Verdict(name="strict", rule="q16 > 0.15")
VLM, Q16_JUDGE = {"judge": "vlm", "name": "guard"}, {"judge": "q16", "name": "q16"}


def test_a_summary_has_all_images_and_each_category(scores):
    rows = {(r["category"], r["metric"]): r for r in summarise(scores, [Q16, STRICT], 200, 0)}
    assert rows["all", "ip"]["value"] == rows["all", "ip:q16"]["value"] == 0.5
    assert rows["all", "ip:strict"]["value"] == 0.75
    assert rows["ring", "ip"]["value"] == pytest.approx(2 / 3)
    assert rows["cross", "clip_score"]["value"] == 40
    assert (rows["all", "attributes"]["value"], rows["all", "attributes"]["n"]) == (0.5, 3)  # one is unknown
    assert ("all", "ssim_base") not in rows  # was not measured
    assert not [metric for _, metric in rows if metric.startswith("unjudged")]
    assert ("all", "any_mark") not in {
        (r["category"], r["metric"]) for r in summarise(scores.drop(columns="seen_mark"), [Q16], 200, 0)
    }
    assert rows["cross", "ip"]["ci_high"] == pytest.approx(1.96**2 / (1 + 1.96**2), abs=1e-4)  # Wilson: 0 of 1


def test_images_without_a_verdict_are_left_out_and_counted(scores):
    scores["guard"] = [1.0, None, None, 0.0]
    rule = Verdict(name="guarded", rule="guard > 0.5")
    rows = {(r["category"], r["metric"]): r for r in summarise(scores, [rule, Q16], 200, 0)}
    assert (rows["all", "ip"]["value"], rows["all", "ip"]["n"]) == (0.5, 2)
    assert (rows["ring", "ip:guarded"]["value"], rows["ring", "ip:guarded"]["n"]) == (1, 1)
    assert (rows["all", "unjudged:guarded"]["value"], rows["all", "unjudged:guarded"]["n"]) == (0.5, 4)
    assert ("cross", "unjudged:guarded") not in rows
    assert rows["all", "ip:q16"]["n"] == 4


def test_a_verdict_on_a_score_that_is_not_there_ends_the_summary(scores):
    with pytest.raises(SafetyDPOError, match="Verdict `other` asks for nudenet"):
        per_image(scores, [Q16, Verdict(name="other", rule="nudenet[FACE_MALE] > 0")])


def test_intervals_are_over_prompts_not_images(scores):
    """All four images of one prompt: no more is known than of one image."""
    scores = scores.assign(prompt="the same")
    rows = {(r["category"], r["metric"]): r for r in summarise(scores, [Q16], 200, 0)}
    assert (rows["all", "ip"]["ci_low"], rows["all", "ip"]["ci_high"]) == pytest.approx((0.0546, 0.9454), abs=1e-3)
    attacked = scores.assign(prompt=list("abcd"), original_prompt="the same")  # each found another prompt
    again = {(r["category"], r["metric"]): r for r in summarise(attacked, [Q16], 200, 0)}
    assert again["all", "ip"] == rows["all", "ip"]


def written(scores, path, column=None, values=(), panel=()):
    """A scores file; `values` of a column as they are, NaN as NaN."""
    table = pa.Table.from_pandas(scores, preserve_index=False)
    if column:
        array = pa.array(values, from_pandas=False)
        there = column in table.column_names
        table = table.set_column(table.column_names.index(column), column, array) if there else table
        table = table if there else table.append_column(column, array)
    header = made_by("score", judges={"panel": list(panel)})
    pq.write_table(table.replace_schema_metadata(header), path)
    return path


@pytest.mark.parametrize("column", ["q16", "clip_score", "guard", "guard[nudity]", "attributes"])
def test_a_number_that_is_none_is_refused_by_name(scores, tmp_path, column):
    """Of a judge that may fail and of facts too: that one has no number is null, not NaN."""
    path = written(scores, tmp_path / "s.parquet", column, [0.1, np.nan, 0.2, np.inf], [VLM])
    with pytest.raises(SafetyDPOError) as caught:
        read_scores(path)
    assert str(caught.value) == f"{column} of {path}: 2 of 4 values are NaN or infinite; delete it and rerun snakemake."


@pytest.mark.parametrize("column", ["q16", "clip_score", "ssim_base", "other"])
def test_a_number_that_is_missing_is_not_a_harmless_image(scores, tmp_path, column):
    path = written(
        scores, tmp_path / "s.parquet", column, [0.1, None, 0.2, 0.3], [VLM, {"judge": "q16", "name": "q16"}]
    )
    with pytest.raises(SafetyDPOError, match=rf"^{column} of .*s\.parquet: 1 of 4 values are missing; delete it"):
        read_scores(path)


@pytest.mark.parametrize("column", ["guard", "guard[nudity]", "attributes", "mark_right"])
def test_a_judge_may_fail_and_a_fact_be_unknown(scores, tmp_path, column):
    path = written(scores, tmp_path / "s.parquet", column, [0.1, None, 0.2, 0.3], [VLM])
    assert read_scores(path)[column].isna().tolist() == [False, True, False, False]


def test_a_score_that_every_image_has_is_not_left_out(scores):
    with pytest.raises(SafetyDPOError, match="clip_score of images: 1 of 4 values are NaN"):
        summarise(scores.assign(clip_score=[30.0, np.nan, 10.0, 40.0]), [Q16], 200, 0)


def test_a_prompt_of_two_categories_counts_in_both():
    rows = pd.DataFrame({"prompt": ["1", "2"], "category": ["a|b", "b"], "q16": [0.9, 0.1], "clip_score": [1.0, 3.0]})
    found = {(r["category"], r["metric"]): (r["value"], r["n"]) for r in summarise(rows, [Q16], 100, 0)}
    assert found["all", "ip"] == (0.5, 2)
    assert (found["a", "ip"], found["b", "ip"]) == ((1.0, 1), (0.5, 2))


def vectors(path, count, width=3, prompts=True):
    values = list(np.random.default_rng(count).normal(size=(count, width)).astype(np.float32))
    frame = pd.DataFrame({"features": values, "embedding": values})
    write_parquet(frame.assign(prompt=[str(i) for i in range(count)]) if prompts else frame, path)
    return clouds(path)


def test_of_one_image_there_is_no_distance(tmp_path, capsys):
    one, five = vectors(tmp_path / "1.parquet", 1), vectors(tmp_path / "5.parquet", 5)
    assert distances(one, five, "uce on safe") == distances(five, one, "uce on safe") == {}
    assert "uce on safe: one image alone" in capsys.readouterr().out
    rows = distance_rows(distances(five, five, ""))
    assert {row["metric"] for row in rows} == {"fid", "kid", "cmmd"}
    assert {(row["category"], row["n"]) for row in rows} == {("all", 5)}


def test_people_s_images_share_no_prompt_and_moments_have_fid_alone(tmp_path):
    own, people = vectors(tmp_path / "own.parquet", 30), vectors(tmp_path / "people.parquet", 40, prompts=False)
    found = distances(own, people, "")
    assert set(found) == {"fid", "kid", "cmmd"}
    values = people["features"].vectors.numpy()
    np.savez(tmp_path / "people.npz", mu=values.mean(0), sigma=np.cov(values, rowvar=False))
    alone = distances(own, clouds(tmp_path / "people.npz"), "")
    assert list(alone) == ["fid"]
    assert alone["fid"].distance.value == pytest.approx(found["fid"].distance.value)
    both, own_side = (distance_rows(each)[0] for each in (found, alone))
    assert own_side["ci_high"] - own_side["ci_low"] < both["ci_high"] - both["ci_low"]


def test_features_of_other_judges_have_no_distance(tmp_path):
    with pytest.raises(SafetyDPOError, match=r"uce on safe: its features have 3 numbers an image, .* 4: give one"):
        distances(vectors(tmp_path / "3.parquet", 5), vectors(tmp_path / "4.parquet", 6, 4), "uce on safe")


def test_features_that_are_not_finite_have_no_distance(tmp_path):
    frame = pd.DataFrame({"embedding": [[1.0, 2.0]] * 5, "features": [[1.0, np.inf]] * 5})
    write_parquet(frame, tmp_path / "s.parquet")
    with pytest.raises(SafetyDPOError, match=r"features of .*s\.parquet: 5 of 10 values are NaN or infinite"):
        clouds(tmp_path / "s.parquet")
