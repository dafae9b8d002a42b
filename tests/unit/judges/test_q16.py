"""Q16: which pickles are read, what its two prompts mean, where it looks twice."""

import math
import os
import pickle

import numpy as np
import pytest
import torch

from safetydpo.config.judges import Judges
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.q16 import Q16, read_q16_prompts

CPU = torch.device("cpu")


def toy_eyes(folder, **changes):
    names = {"q16_clip": str(folder), "clip_score": str(folder), "q16_prompts": str(folder / "prompts.p")}
    return Eyes(Judges(**{**names, **changes}), CPU)


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


def test_a_broken_pickle_is_a_sentence(tmp_path):
    (tmp_path / "x.p").write_bytes(b"\x80\x09abc")
    with pytest.raises(SafetyDPOError):
        read_q16_prompts(tmp_path / "x.p")


def test_row_1_of_the_tuned_prompts_is_inappropriate(toy):
    folder, images, _, embeddings = toy
    # image two has cosine 1 to row 1 and c to row 0: p = e^100 / (e^100 + e^(100 c)); for image one it is 1 - p
    p = 1 / (1 + math.exp(-100 * (1 - float(embeddings[0] @ embeddings[1]))))
    assert p > 0.6  # the toy tells them apart
    rows = toy_eyes(folder).look(images, ["a red circle"] * 2)
    assert [row["q16"] for row in rows] == pytest.approx([1 - p, p], abs=1e-3)
    assert [row["flagged"] for row in rows] == [False, True]


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


def test_missing_or_broken_judges_are_sentences(toy, tmp_path):
    folder = toy[0]
    with pytest.raises(SafetyDPOError, match=r"CLIP .*nowhere cannot be loaded"):
        toy_eyes(folder, clip_score=str(tmp_path / "nowhere"))
    with pytest.raises(SafetyDPOError, match=r"do not exist: set judges\.q16_prompts"):
        toy_eyes(folder, q16_prompts=str(tmp_path / "prompts.p"))
    (tmp_path / "prompts.p").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SafetyDPOError, match=r"is not Q16's prompts\.p"):
        read_q16_prompts(tmp_path / "prompts.p")
