"""All judges together: their columns, CLIPScore, features, and that bfloat16 changes no verdict."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import DEMO_JUDGES, DETECTOR, Q16

from safetydpo.config.judges import Judges, Verdict
from safetydpo.demo.grammar import ALL_SCENES
from safetydpo.demo.scenes import Scene, draw
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.verdicts import verdict_of

CPU = torch.device("cpu")
DEMO_RULE = Verdict(name="demo")


@pytest.fixture(scope="module")
def toy_eyes(toy, eyes_of):
    return eyes_of({"judge": "q16", "id": str(toy[0]), "path": str(toy[0] / "prompts.p")})


def test_every_judge_has_the_columns_of_its_name(eyes, eyes_of):
    image = draw(Scene("red", "circle", "teal"), np.random.default_rng(2))
    (row,) = eyes.look([image], ["a red circle"])
    words = ["seen_mark", "seen_colour", "seen_shape", "seen_field", "seen_side"]
    assert sorted(eyes.words) == sorted(words)
    assert [name for name in row if name.startswith("demo[")] == [f"demo[{x}]" for x in eyes.judges["demo"].labels]
    assert {"q16", "clip_score", "embedding", "features", *words} <= set(row)
    assert set(eyes.about) == {"q16", "demo"}
    assert list(eyes.about["q16"]) == ["clip", "weights", "prompts"]
    two = eyes_of(Q16, Q16 | {"name": "again"}, DETECTOR)
    assert two.judges["q16"].clip is two.judges["again"].clip  # one CLIP in memory
    (other,) = two.look([image], ["a red circle"])
    assert other["q16"] == other["again"] == row["q16"]
    assert other["demo[ring]"] == row["demo[ring]"]


def test_bfloat16_changes_no_verdict_and_little_of_clip_score(eyes):
    rng = np.random.default_rng(3)
    images = [draw(scene, rng) for scene in ALL_SCENES[::40]]
    half = Eyes(Judges(**DEMO_JUDGES, dtype="bfloat16"), CPU)
    prompts = ["a red circle"] * len(images)
    exact, quick = (pd.DataFrame(judges.look(images, prompts)) for judges in (eyes, half))
    assert verdict_of(DEMO_RULE, exact).equals(verdict_of(DEMO_RULE, quick))
    assert 0 < (exact.clip_score - quick.clip_score).abs().max() < 1


def test_clip_score_prefers_the_right_caption(eyes):
    image = draw(Scene("red", "circle", "teal"), np.random.default_rng(2))
    right, wrong = eyes.look([image, image], ["a red circle on a teal field", "a blue star on a pink field"])
    assert right["clip_score"] > wrong["clip_score"] + 20


def test_clip_score_is_a_hundred_times_the_cosine_and_may_be_negative(toy, toy_eyes):
    _, images, clip, embeddings = toy
    prompts = ["a red circle", "a star " * 40]  # the second is longer than the context
    with torch.no_grad():
        texts = clip.texts(prompts)
    expected = [100 * float(torch.cosine_similarity(embeddings[i], texts[i], dim=0)) for i in (0, 1)]
    assert [row["clip_score"] for row in toy_eyes.look(images, prompts)] == pytest.approx(expected, abs=1e-3)


def test_features_are_clips_unless_others_are_asked_for(toy, toy_eyes, eyes):
    _, images, _, embeddings = toy
    rows = toy_eyes.look(images, ["a", "b"])
    assert np.allclose(np.stack([row["features"] for row in rows]), embeddings, atol=1e-5)
    assert "seen_mark" not in rows[0]
    (seen,) = eyes.look([images[0]], ["a"])
    assert np.allclose(seen["features"], seen["embedding"])
    (told,) = Eyes(Judges(**DEMO_JUDGES, features="detector"), CPU).look([images[0]], ["a"])
    assert told["features"].shape != seen["features"].shape
