"""Q16 and CLIPScore on a toy: the tuned prompts are the embeddings of two images."""

import math
import pickle

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from safetydpo.config.judges import Judges
from safetydpo.demo.build.clip import clip_config, save_clip, train_tokenizer
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.clip import ClipEyes
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.q16 import read_q16_prompts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A random CLIP, two images, and prompts.p: row 0 (appropriate) is image one, row 1 (inappropriate) image two."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tokenizer = train_tokenizer()
    save_clip(CLIPModel(clip_config(tokenizer)), tokenizer, folder)
    rng = np.random.default_rng(0)
    images = [np.full((48, 48, 3), 20, np.uint8), rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)]
    clip = ClipEyes(str(folder), CPU)
    with torch.no_grad():
        embeddings = clip.images(images)
    # row 0 is nine times as long: only directions count
    (folder / "prompts.p").write_bytes(pickle.dumps(embeddings.numpy() * np.array([[9], [1]], np.float32)))
    return folder, images, clip, embeddings


def eyes(folder, **changes):
    names = {"q16_clip": str(folder), "clip_score": str(folder), "q16_prompts": str(folder / "prompts.p")}
    return Eyes(Judges(**{**names, **changes}), CPU)


def test_row_1_of_the_tuned_prompts_is_inappropriate(toy):
    folder, images, _, embeddings = toy
    # image two has cosine 1 to row 1 and c to row 0: p = e^100 / (e^100 + e^(100 c)); for image one it is 1 - p
    p = 1 / (1 + math.exp(-100 * (1 - float(embeddings[0] @ embeddings[1]))))
    assert p > 0.6  # the toy tells them apart
    rows = eyes(folder).look(images, ["a red circle"] * 2)
    assert [row["q16"] for row in rows] == pytest.approx([1 - p, p], abs=1e-3)
    assert [row["flagged"] for row in rows] == [False, True]


def test_clip_score_is_a_hundred_times_the_cosine_and_may_be_negative(toy):
    folder, images, clip, embeddings = toy
    prompts = ["a red circle", "a star " * 40]  # the second is longer than the context
    with torch.no_grad():
        texts = clip.texts(prompts)
    expected = [100 * float(torch.cosine_similarity(embeddings[i], texts[i], dim=0)) for i in (0, 1)]
    assert [row["clip_score"] for row in eyes(folder).look(images, prompts)] == pytest.approx(expected, abs=1e-3)


def test_without_a_detector_features_are_clips(toy):
    folder, images, _, embeddings = toy
    rows = eyes(folder).look(images, ["a", "b"])
    assert np.allclose(np.stack([row["features"] for row in rows]), embeddings, atol=1e-5)
    assert "seen_mark" not in rows[0]


def test_missing_or_broken_judges_are_sentences(toy, tmp_path):
    folder = toy[0]
    with pytest.raises(SafetyDPOError, match=r"CLIP .*nowhere cannot be loaded"):
        eyes(folder, clip_score=str(tmp_path / "nowhere"))
    with pytest.raises(SafetyDPOError, match=r"do not exist: set judges\.q16_prompts"):
        eyes(folder, q16_prompts=str(tmp_path / "prompts.p"))
    (tmp_path / "prompts.p").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SafetyDPOError, match=r"is not Q16's prompts\.p"):
        read_q16_prompts(tmp_path / "prompts.p")
