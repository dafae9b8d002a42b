"""Rules on scores: whose columns count, and what a missing score decides."""

import numpy as np
import pandas as pd
import pytest

from safetydpo.config.judges import Verdict
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.verdicts import column, danger_of, labels_in, verdict_of

NA = pd.NA
SCORES = pd.DataFrame(
    {
        "q16": [0.2, 0.5, 0.51, 0.95],
        "nudenet[FACE_FEMALE]": [0.9, 0.0, 0.9, 0.0],
        "nudenet[BELLY_EXPOSED]": [0.3, 0.0, 0.0, 0.7],
        "nudenet[ANUS_EXPOSED]": [0.0, 0.65, 0.0, 0.0],
        "vlm": [1.0, 0.0, np.nan, np.nan],
        "vlm_category": ["gore", None, None, None],
    },
    index=[7, 3, 5, 1],
)


def told(rule, scores=SCORES):
    found = verdict_of(Verdict(name="mine", rule=rule), scores)
    assert found.dtype == "boolean"
    assert found.index.equals(scores.index)
    return found.to_list()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("q16 > 0.5", [False, False, True, True]),
        ("q16 >= 0.5", [False, True, True, True]),
        ("0.5 < q16", [False, False, True, True]),
        ("q16 <= 0.5", [True, True, False, False]),
        ("nudenet[BELLY_EXPOSED] > 0", [True, False, False, True]),
        ("nudenet[*_EXPOSED] > 0.6", [False, True, False, True]),
        ("nudenet[ANUS_EXPOSED, FACE_*] > 0.8", [True, False, True, False]),
        ("nudenet[BELLY_EXPOSED] > nudenet[ANUS_EXPOSED]", [True, False, False, True]),
        ("q16 > 0.9 or nudenet[*_EXPOSED] > 0 and not q16 > 0.4", [True, False, False, True]),
    ],
)
def test_a_rule_is_applied_to_each_image(rule, expected):
    assert told(rule) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("vlm > 0.5", [True, False, NA, NA]),
        ("not vlm > 0.5", [False, True, NA, NA]),
        ("vlm > 0.5 or q16 > 0.9", [True, False, NA, True]),  # true, whatever the other would have said
        ("vlm > 0.5 and q16 > 0.9", [False, False, False, NA]),
        ("vlm < q16", [False, True, NA, NA]),
    ],
)
def test_a_missing_score_is_no_verdict_unless_the_rest_decides(rule, expected):
    for found, wanted in zip(told(rule), expected, strict=True):
        assert (found is NA) if wanted is NA else found == wanted


def test_a_score_that_the_table_lacks_is_said():
    for rule, score in (("heads > 0.5", "heads"), ("q16[a] > 0", r"q16\[a\]"), ("nudenet > 0", "nudenet")):
        with pytest.raises(SafetyDPOError, match=f"^Verdict `mine` asks for {score}, which the scores lack"):
            told(rule)


def test_danger_is_the_first_score_of_the_rule_and_0_where_there_is_none():
    assert danger_of(Verdict(name="mine", rule="vlm > 0.5 or q16 > 0.5"), SCORES).tolist() == [1, 0, 0, 0]
    assert danger_of(Verdict(name="mine", rule="nudenet[*_EXPOSED] > 0.6"), SCORES).tolist() == [0.3, 0.65, 0, 0.7]
    small = [0.7, 0.35, 1, 0.3]
    for rule in ("not nudenet[*_EXPOSED] > 0.6", "nudenet[*_EXPOSED] < 0.6", "not 0.6 < nudenet[*_EXPOSED]"):
        assert danger_of(Verdict(name="mine", rule=rule), SCORES).tolist() == pytest.approx(small)
    assert danger_of(Verdict(name="mine", rule="0.6 <= nudenet[*_EXPOSED]"), SCORES).tolist() == [0.3, 0.65, 0, 0.7]


def test_labels_of_a_judge_are_read_from_its_columns():
    assert labels_in(list(SCORES), "nudenet") == ["FACE_FEMALE", "BELLY_EXPOSED", "ANUS_EXPOSED"]
    assert labels_in(list(SCORES), "q16") == []
    assert labels_in([column("a", "x, y [z]"), column("a")], "a") == ["x, y [z]"]
