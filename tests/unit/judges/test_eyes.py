"""Judges: what counts as inappropriate, and which pickles are read."""

import json
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from snakes import ROOT

from safetydpo.config.judges import Judges
from safetydpo.demo.grammar import ALL_SCENES
from safetydpo.demo.scenes import Scene, draw
from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.scoring import same_layout
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.nudenet import NudeNet
from safetydpo.judges.q16 import Q16, read_q16_prompts
from safetydpo.judges.stage import check_judges
from safetydpo.running.devices import device_of

DEMO = ROOT / "resources/demo"
CLIP = {"q16_clip": str(DEMO / "clip"), "clip_score": str(DEMO / "clip"), "q16_prompts": str(DEMO / "q16.safetensors")}


@pytest.fixture(scope="module")
def eyes():
    return Eyes(Judges(**CLIP, detector="demo", detector_path=str(DEMO / "detector")), device_of("cpu"))


def test_published_prompts_are_read_from_their_pickle(tmp_path):
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(values))
    assert read_q16_prompts(tmp_path / "prompts.p").tolist() == values.tolist()


def test_the_pickle_is_read_once_and_kept_as_safetensors(tmp_path):
    prompts = read_q16_prompts(DEMO / "q16.safetensors")
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(prompts.numpy()))
    config = Judges(**CLIP | {"q16_prompts": str(tmp_path / "prompts.p")})
    check_judges(config, tmp_path / "judges.json", tmp_path / "q16.safetensors")
    assert torch.equal(read_q16_prompts(tmp_path / "q16.safetensors"), prompts)
    assert json.loads((tmp_path / "judges.json").read_text())["q16_prompts"] == str(tmp_path / "prompts.p")


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


class TwoFaced:
    """A CLIP whose quick embeddings are wrong by more than Q16 can bear, and whose exact ones are right."""

    half, model = True, None

    def __init__(self, quick, exact):
        self.quick, self.right, self.asked = quick, exact, []

    def images(self, images, exact=False):
        self.asked.append((list(images), exact))
        return (self.right if exact else self.quick)[images]


def test_in_bfloat16_doubtful_images_are_looked_at_again_in_float32():
    def seen(logits):
        return torch.tensor([[0.0, logit / 100] for logit in logits])

    q16 = object.__new__(Q16)
    q16.prompts = torch.eye(2)
    q16.clip = TwoFaced(seen([-5.0, 0.3, -0.2, 6.0]), seen([-5.0, -0.3, 0.2, 6.0]))
    assert (q16([0, 1, 2, 3]) > 0.5).tolist() == [False, False, True, True]
    assert q16.clip.asked == [([0, 1, 2, 3], False), ([1, 2], True)]


def test_bfloat16_changes_no_label_and_little_of_clip_score(eyes):
    rng = np.random.default_rng(3)
    images = [draw(scene, rng) for scene in ALL_SCENES[::40]]
    half = Eyes(
        Judges(**CLIP, detector="demo", detector_path=str(DEMO / "detector"), dtype="bfloat16"), eyes.q16.prompts.device
    )
    prompts = ["a red circle"] * len(images)
    exact, quick = eyes.look(images, prompts), half.look(images, prompts)
    assert [row["flagged"] for row in exact] == [row["flagged"] for row in quick]
    differences = [abs(a["clip_score"] - b["clip_score"]) for a, b in zip(exact, quick, strict=True)]
    assert 0 < max(differences) < 1


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


def test_nudenet_looks_at_a_neutral_image_and_finds_nothing():
    eyes = Eyes(Judges(**CLIP, detector="nudenet"), device_of("cpu"))
    rng = np.random.default_rng(1)
    images = [draw(Scene("red", "circle", "teal"), rng), draw(Scene("red", "circle", "teal", "grid", "white"), rng)]
    harmless, marked = eyes.look(images, ["a red circle"] * 2)
    assert harmless["nudenet"] == marked["nudenet"] == 0
    assert (harmless["flagged"], marked["flagged"]) == (False, True)  # Q16 alone knows the mark
    assert len(harmless["features"]) == len(eyes.clip.images(images)[0])  # no detector's features: CLIP's


def test_nudenets_two_classes_are_inappropriate_and_no_others(monkeypatch):
    judge, given = NudeNet(None, torch.device("cpu")), []

    def detect_batch(images, batch_size):
        given.extend(images)
        boxes = [("FACE_FEMALE", 0.9)], [("BELLY_EXPOSED", 0.8), ("MALE_GENITALIA_EXPOSED", 0.3)]
        return [[{"class": name, "score": score} for name, score in found] for found in boxes]

    monkeypatch.setattr(judge.model, "detect_batch", detect_batch)
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 0] = 255
    seen = judge([image, image])
    assert seen.inappropriate == [False, True]
    assert [row["nudenet"] for row in seen.rows] == [0, 0.3]
    assert given[0][0, 0].tolist() == [0, 0, 255]  # blue first


def test_a_missing_nudenet_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(SafetyDPOError, match=r"nudenet, which is not installed: pip install 'safetydpo\[nudenet\]'"):
        NudeNet(None, torch.device("cpu"))
