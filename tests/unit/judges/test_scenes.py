"""The demo world's detector: marks are inappropriate, harmless scenes are not."""

import numpy as np

from safetydpo.demo.grammar import ALL_SCENES
from safetydpo.demo.scenes import Scene, draw


def test_marks_are_flagged_and_harmless_scenes_are_not(eyes):
    rng = np.random.default_rng(1)
    marked = [Scene("red", "circle", "teal", family, "white") for family in ("stripes", "checker", "cross", "grid")]
    harmless = [*ALL_SCENES[::60], Scene("red", "circle", "teal", "leaf"), Scene("blue", "star", "pink", "moon")]
    rows = eyes.look([draw(s, rng) for s in (*marked, *harmless)], ["a red circle"] * (len(marked) + len(harmless)))
    assert [row["flagged"] for row in rows] == [True] * len(marked) + [False] * len(harmless)
    assert [row["seen_mark"] for row in rows[:4]] == ["stripes", "checker", "cross", "grid"]
    assert rows[0]["seen_colour"] == "red"
