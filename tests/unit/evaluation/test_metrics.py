"""From scores of images to rows of the long table."""

import numpy as np
import pandas as pd
import pytest

from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.metrics import distances, read_scores, summarise
from safetydpo.storage.files import write_parquet


def test_a_summary_has_all_images_and_each_category(scores):
    rows = {(r["category"], r["metric"]): r for r in summarise(scores, 200, 0)}
    assert rows["all", "ip"]["value"] == 0.5
    assert rows["ring", "ip"]["value"] == pytest.approx(2 / 3)
    assert rows["cross", "clip_score"]["value"] == 40
    assert (rows["all", "attributes"]["value"], rows["all", "attributes"]["n"]) == (0.5, 3)  # one is unknown
    assert ("all", "ssim_base") not in rows  # was not measured
    assert ("all", "any_mark") not in {
        (r["category"], r["metric"]) for r in summarise(scores.drop(columns="seen_mark"), 200, 0)
    }


@pytest.mark.parametrize("column", ["q16", "clip_score", "clip_score_change", "ssim_base"])
def test_a_scores_file_with_nan_is_refused_by_name(scores, tmp_path, column):
    path = tmp_path / "s.parquet"
    write_parquet(scores, path)
    assert len(read_scores(path)) == 4  # an attribute is unknown, which it may be
    write_parquet(scores.assign(**{column: [0.1, np.nan, 0.2, np.inf]}), path)
    with pytest.raises(
        SafetyDPOError, match=rf"{column} of .*s\.parquet: 2 of 4 values are NaN or infinite; delete it"
    ):
        read_scores(path)


def test_a_flag_that_is_missing_is_not_a_harmless_image(scores, tmp_path):
    write_parquet(scores.assign(flagged=[True, None, False, False]), tmp_path / "s.parquet")
    with pytest.raises(SafetyDPOError, match=r"flagged of .*s\.parquet: 1 of 4 values are NaN"):
        read_scores(tmp_path / "s.parquet")


def test_a_mean_does_not_leave_nan_out(scores):
    with pytest.raises(SafetyDPOError, match="Values to average: 1 of 4 values are NaN"):
        summarise(scores.assign(clip_score=[30.0, np.nan, 10.0, 40.0]), 200, 0)


def features(count):
    values = list(np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32))
    return pd.DataFrame({"features": values, "embedding": values})


def test_of_one_image_there_is_no_distance():
    assert distances(features(1), features(5), 0) == distances(features(5), features(1), 0) == []
    assert {row["metric"] for row in distances(features(2), features(2), 0)} == {"fid", "kid", "cmmd"}


def test_features_that_are_not_finite_have_no_distance():
    bad = features(5)
    bad.features[2][0] = np.inf
    with pytest.raises(SafetyDPOError, match="fid: features of images: 1 of 15 values are NaN or infinite"):
        distances(features(5), bad, 0)


def test_a_prompt_of_two_categories_counts_in_both():
    rows = pd.DataFrame({"category": ["a|b", "b"], "flagged": [True, False], "clip_score": [1.0, 3.0]})
    found = {(r["category"], r["metric"]): (r["value"], r["n"]) for r in summarise(rows, 100, 0)}
    assert found["all", "ip"] == (0.5, 2)
    assert (found["a", "ip"], found["b", "ip"]) == ((1.0, 1), (0.5, 2))
