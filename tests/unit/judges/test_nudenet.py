"""NudeNet: of every class the best score, and what is said where it is missing."""

import sys
from importlib.metadata import version

import numpy as np
import pytest

from safetydpo.config.judges import Judge
from safetydpo.demo.scenes import Scene, draw
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.judge import Views
from safetydpo.judges.nudenet import NudeNet
from safetydpo.judges.registry import NUDENET

NUDE = Judge(judge="nudenet")


def test_nudenet_looks_at_neutral_images_of_any_size_and_finds_nothing(eyes_of):
    eyes = eyes_of({"judge": "nudenet"})
    rng = np.random.default_rng(1)
    images = [draw(Scene("red", "circle", "teal"), rng), np.zeros((40, 64, 3), np.uint8)]
    rows = eyes.look(images, ["a red circle"] * 2)
    assert [[row[f"nudenet[{label}]"] for label in NUDENET] for row in rows] == [[0.0] * 18] * 2
    assert "nudenet" not in rows[0]  # it has no score of its own
    assert eyes.about["nudenet"]["version"] == version("nudenet")
    assert len(eyes.about["nudenet"]["weights"]) == 16


def test_its_classes_are_those_of_the_installed_package():
    from nudenet import nudenet

    assert set(NUDENET) == set(getattr(nudenet, "__labels"))


def test_every_class_has_its_best_score(given, monkeypatch):
    judge, seen_by = NudeNet(NUDE, given), []

    def detect_batch(images, batch_size):
        seen_by.extend(images)
        boxes = (
            [("FACE_FEMALE", 0.9)],
            [("MALE_GENITALIA_EXPOSED", 0.3), ("BELLY_EXPOSED", 0.8), ("MALE_GENITALIA_EXPOSED", 0.4)],
            [],
        )
        return [[{"class": name, "score": score} for name, score in found] for found in boxes]

    monkeypatch.setattr(judge.model, "detect_batch", detect_batch)
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 0] = 255
    scores = judge(Views([image] * 3)).scores
    found = {"FACE_FEMALE": [0.9, 0, 0], "BELLY_EXPOSED": [0, 0.8, 0], "MALE_GENITALIA_EXPOSED": [0, 0.4, 0]}
    assert dict(scores) == {label: found.get(label, [0, 0, 0]) for label in NUDENET}
    assert seen_by[0][0, 0].tolist() == [0, 0, 255]  # blue first


def test_a_missing_nudenet_is_a_sentence(given, monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(SafetyDPOError, match=r"nudenet, which is not installed: pip install 'safetydpo\[nudenet\]'"):
        NudeNet(NUDE, given)
