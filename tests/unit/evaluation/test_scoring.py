"""Scores of single images: the metrics of each, and what stands beside base's image of the same prompt."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.scores import METRICS
from safetydpo.evaluation.scoring import Base, look_at
from safetydpo.storage.images import png


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
def test_metrics_of_single_images(scores, metric, values):
    assert METRICS[metric](scores).tolist() == values


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


def test_without_bases_images_only_scores_are_compared():
    base = Base(pd.DataFrame({"prompt_id": ["a", "b"], "clip_score": [7.0, 90.0]}))
    scores = rows_of(look_at(FakeEyes(), [shown([60], "b")], facts("ab", [{}, {}]), base))
    assert scores.clip_score_change.tolist() == [60 - 90]
    assert "ssim_base" not in scores
    with pytest.raises(SafetyDPOError, match="The base model has no image of prompt c"):
        rows_of(look_at(NoEyes(), [shown([1], "c")], facts("abc", [{}] * 3), base))


class OneScore(FakeEyes):
    """A judge whose scores of images in order are given."""

    def __init__(self, column, values):
        self.column, self.values = column, values

    def look(self, images, prompts):
        rows = super().look(images, prompts)
        return [row | {self.column: value} for row, value in zip(rows, self.values, strict=True)]


@pytest.mark.parametrize("column", ["q16", "nudenet[FACE_MALE]", "clip_score", "embedding"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_ends_the_job_and_is_not_harmless(column, number):
    eyes = OneScore(column, [0.5, np.array(number)])
    with pytest.raises(SafetyDPOError, match=rf"^{re.escape(column)} of the images from b on: 1 of 2 values are NaN"):
        rows_of(look_at(eyes, [shown([60, 61], "ba")], facts("ab", [{}, {}])))


def test_a_score_that_a_judge_does_not_give_stays_missing():
    scores = rows_of(look_at(OneScore("vlm", [None, 0.5]), [shown([60, 61], "ba")], facts("ab", [{}, {}])))
    assert scores.vlm.isna().tolist() == [True, False]


class NoEyes:
    """Must not be asked."""

    def look(self, images, prompts):
        raise AssertionError("scored")


def test_images_of_another_prompt_set_or_without_bases_are_refused_before_they_are_scored():
    with pytest.raises(SafetyDPOError, match="Images of b are not in the prompt set"):
        rows_of(look_at(NoEyes(), [shown([1, 1], "ab")], facts("a", [{}])))
    with pytest.raises(SafetyDPOError, match="The base model has no image of prompt c"):
        rows_of(look_at(NoEyes(), [shown([1], "c")], facts("abc", [{}] * 3), beside("ab")))


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


def test_scores_of_what_an_attack_found_keep_which_prompt_was_attacked():
    found = facts("ab", [{}, {}]).assign(original_prompt=["first", "second"])
    scores = rows_of(look_at(FakeEyes(), [shown([1, 2], "ba")], found))
    assert scores.original_prompt.tolist() == ["second", "first"]
    assert scores.prompt.tolist() == ["p", "p"]
