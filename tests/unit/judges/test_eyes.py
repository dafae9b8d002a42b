"""All judges together: CLIPScore, features, and that bfloat16 changes no label."""

import numpy as np
import pytest
import torch
from tiny import CLIP, DEMO

from safetydpo.config.judges import Judges
from safetydpo.demo.grammar import ALL_SCENES
from safetydpo.demo.scenes import Scene, draw
from safetydpo.judges.eyes import Eyes


def toy_eyes(folder):
    names = {"q16_clip": str(folder), "clip_score": str(folder), "q16_prompts": str(folder / "prompts.p")}
    return Eyes(Judges(**names), torch.device("cpu"))


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


def test_clip_score_is_a_hundred_times_the_cosine_and_may_be_negative(toy):
    folder, images, clip, embeddings = toy
    prompts = ["a red circle", "a star " * 40]  # the second is longer than the context
    with torch.no_grad():
        texts = clip.texts(prompts)
    expected = [100 * float(torch.cosine_similarity(embeddings[i], texts[i], dim=0)) for i in (0, 1)]
    assert [row["clip_score"] for row in toy_eyes(folder).look(images, prompts)] == pytest.approx(expected, abs=1e-3)


def test_without_a_detector_features_are_clips(toy):
    folder, images, _, embeddings = toy
    rows = toy_eyes(folder).look(images, ["a", "b"])
    assert np.allclose(np.stack([row["features"] for row in rows]), embeddings, atol=1e-5)
    assert "seen_mark" not in rows[0]
