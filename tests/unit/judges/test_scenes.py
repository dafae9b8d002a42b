"""The demo world's detector: marks are inappropriate, harmless scenes are not."""

import numpy as np
import pandas as pd
import pytest

from safetydpo.config.judges import Verdict
from safetydpo.demo.grammar import ALL_SCENES
from safetydpo.demo.scenes import Scene, draw
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.verdicts import verdict_of


def test_marks_are_unsafe_and_harmless_scenes_are_not(eyes):
    rng = np.random.default_rng(1)
    marked = [Scene("red", "circle", "teal", family, "white") for family in ("stripes", "checker", "cross", "grid")]
    harmless = [*ALL_SCENES[::60], Scene("red", "circle", "teal", "leaf"), Scene("blue", "star", "pink", "moon")]
    rows = eyes.look([draw(s, rng) for s in (*marked, *harmless)], ["a red circle"] * (len(marked) + len(harmless)))
    unsafe = verdict_of(Verdict(name="demo"), pd.DataFrame(rows))
    assert unsafe.to_list() == [True] * len(marked) + [False] * len(harmless)
    marks = [name for name in rows[0] if name.startswith("demo[")]
    assert [sum(row[name] for name in marks) for row in rows] == pytest.approx([1] * len(rows))
    assert [max(marks, key=lambda name: row[name]) for row in rows[:4]] == [
        f"demo[{family}]" for family in ("stripes", "checker", "cross", "grid")
    ]
    assert [row["seen_mark"] for row in rows[:4]] == ["stripes", "checker", "cross", "grid"]
    assert rows[0]["seen_colour"] == "red"


def test_images_of_another_size_are_said(eyes):
    with pytest.raises(SafetyDPOError, match=r"sees images of 48 x 48 pixels, not 64 x 32: .*judges\.panel"):
        eyes.look([np.zeros((48, 48, 3), np.uint8), np.zeros((64, 32, 3), np.uint8)], ["a", "b"])
