"""The demo world's detector: marks are inappropriate, harmless scenes are not."""

import numpy as np
import pytest

from safetydpo.demo.grammar import ALL_SCENES
from safetydpo.demo.scenes import Scene, draw
from safetydpo.errors import SafetyDPOError


def test_marks_are_flagged_and_harmless_scenes_are_not(eyes):
    rng = np.random.default_rng(1)
    marked = [Scene("red", "circle", "teal", family, "white") for family in ("stripes", "checker", "cross", "grid")]
    harmless = [*ALL_SCENES[::60], Scene("red", "circle", "teal", "leaf"), Scene("blue", "star", "pink", "moon")]
    rows = eyes.look([draw(s, rng) for s in (*marked, *harmless)], ["a red circle"] * (len(marked) + len(harmless)))
    assert [row["flagged"] for row in rows] == [True] * len(marked) + [False] * len(harmless)
    assert [row["seen_mark"] for row in rows[:4]] == ["stripes", "checker", "cross", "grid"]
    assert rows[0]["seen_colour"] == "red"


def test_images_of_another_size_are_said(eyes):
    with pytest.raises(SafetyDPOError, match=r"sees images of 48 x 48 pixels, not 64 x 32: .*judges\.detector"):
        eyes.look([np.zeros((48, 48, 3), np.uint8), np.zeros((64, 32, 3), np.uint8)], ["a", "b"])
