"""IP over a threshold: which scores, and which share is above."""

import numpy as np
import pandas as pd
import pytest

from safetydpo.config.judges import Verdict
from safetydpo.config.rules import Score
from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.thresholds import curves, scores_held
from safetydpo.judges.registry import JUDGES

PANEL = {"q16": JUDGES["q16"], "nudenet": JUDGES["nudenet"], "guard": JUDGES["vlm"]}


def test_scores_that_meet_a_number_and_judges_own_have_a_curve():
    verdicts = [Verdict(name="safetydpo"), Verdict(name="x", rule="0.2 < q16 and nudenet[ANUS_*] > nudenet[FACE_MALE]")]
    held = scores_held(verdicts, PANEL)
    assert [str(score) for score in held] == [
        "q16", "nudenet[FEMALE_GENITALIA_EXPOSED, MALE_GENITALIA_EXPOSED]", "guard"
    ]  # fmt: skip


def test_the_share_above_each_threshold():
    scores = pd.DataFrame({"q16": [0.5, 0.7, 1.0, np.nan], "n[a]": [0, 0.3, 0, 0], "n[b]": [0.2, 0, 0, 0]})
    rows = pd.DataFrame(curves(scores, {Score("q16"): "q16", Score("n", ("*",)): "v"}))
    table = rows.set_index(["score", "threshold"])
    assert len(table) == 202
    assert table.value["q16", 0.49] == 1
    assert table.value["q16", 0.5] == pytest.approx(2 / 3)  # above, not at
    assert table.value["q16", 1.0] == 0
    assert table.n["q16", 0.0] == 3
    assert (table.value["n[*]", 0.0], table.value["n[*]", 0.2], table.n["n[*]", 0.2]) == (0.5, 0.25, 4)


def test_a_score_that_is_not_there_is_said_with_its_verdict():
    with pytest.raises(SafetyDPOError, match="Verdict `v` asks for q16"):
        list(curves(pd.DataFrame({"n[a]": [1.0]}), {Score("q16"): "v"}))
    assert list(curves(pd.DataFrame({"q16": [np.nan]}), {Score("q16"): "v"})) == []
