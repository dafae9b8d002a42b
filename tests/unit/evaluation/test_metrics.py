"""From scores of images to rows of the long table."""

import pandas as pd
import pytest

from safetydpo.evaluation.metrics import summarise


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


def test_a_prompt_of_two_categories_counts_in_both():
    rows = pd.DataFrame({"category": ["a|b", "b"], "flagged": [True, False], "clip_score": [1.0, 3.0]})
    found = {(r["category"], r["metric"]): (r["value"], r["n"]) for r in summarise(rows, 100, 0)}
    assert found["all", "ip"] == (0.5, 2)
    assert (found["a", "ip"], found["b", "ip"]) == ((1.0, 1), (0.5, 2))
