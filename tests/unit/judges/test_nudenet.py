"""NudeNet: which of its classes count, and what is said where it is missing."""

import sys

import numpy as np
import pytest
import torch
from tiny import CLIP

from safetydpo.config.judges import Judges
from safetydpo.demo.scenes import Scene, draw
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.nudenet import NudeNet
from safetydpo.running.devices import device_of


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
