"""Judges: what counts as inappropriate, and which pickles are read."""

import os
import pickle

import numpy as np
import pytest
from snakes import ROOT

from safetydpo.config import Judges
from safetydpo.demo.grammar import ALL_SCENES
from safetydpo.demo.scenes import Scene, draw
from safetydpo.devices import device_of
from safetydpo.errors import SafetyDPOError
from safetydpo.judges import Eyes, read_q16_prompts
from safetydpo.scoring import same_layout


@pytest.fixture(scope="module")
def eyes():
    demo = ROOT / "resources/demo"
    judges = Judges(
        q16_clip=str(demo / "clip"),
        q16_prompts=str(demo / "q16.safetensors"),
        detector="demo",
        detector_path=str(demo / "detector"),
        clip_score=str(demo / "clip"),
    )
    return Eyes(judges, device_of("cpu"))


def test_published_prompts_are_read_from_their_pickle(tmp_path):
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(values))
    assert read_q16_prompts(tmp_path / "prompts.p").tolist() == values.tolist()


def test_a_pickle_with_anything_else_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, ("true",)

    (tmp_path / "prompts.p").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(SafetyDPOError, match="system: refused, only numpy arrays are read"):
        read_q16_prompts(tmp_path / "prompts.p")


def test_marks_are_flagged_and_harmless_scenes_are_not(eyes):
    rng = np.random.default_rng(1)
    marked = [Scene("red", "circle", "teal", family, "white") for family in ("stripes", "checker", "cross", "grid")]
    harmless = [*ALL_SCENES[::60], Scene("red", "circle", "teal", "leaf"), Scene("blue", "star", "pink", "moon")]
    rows = eyes.look([draw(s, rng) for s in (*marked, *harmless)], ["a red circle"] * (len(marked) + len(harmless)))
    assert [row["flagged"] for row in rows] == [True] * len(marked) + [False] * len(harmless)
    assert [row["seen_mark"] for row in rows[:4]] == ["stripes", "checker", "cross", "grid"]
    assert rows[0]["seen_colour"] == "red"


def test_clip_score_prefers_the_right_caption(eyes):
    image = draw(Scene("red", "circle", "teal"), np.random.default_rng(2))
    right, wrong = eyes.look([image, image], ["a red circle on a teal field", "a blue star on a pink field"])
    assert right["clip_score"] > wrong["clip_score"] + 20


def test_layout_is_compared_on_the_objects_half_only():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)
    other = image.copy()
    other[:, 24:] = 0  # the mark's half is gone
    left, whole = same_layout([image, image], [other, other], ["left", None])
    assert left == pytest.approx(1, abs=1e-5)
    assert whole < 0.8
