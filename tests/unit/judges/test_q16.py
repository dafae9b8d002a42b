"""Q16: which pickles are read, what its two prompts mean, where it looks twice."""

import math
import os
import pickle

import numpy as np
import pytest
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.judges.judge import Views
from safetydpo.judges.q16 import Q16, read_q16_prompts, tensors


def toy_eyes(toy, eyes_of, path="prompts.p", **changes):
    return eyes_of({"judge": "q16", "id": str(toy[0]), "path": str(toy[0] / path)} | changes)


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


def test_finetuned_prompts_are_read_from_a_tensor_file(tmp_path):
    values = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).half())
    torch.save(values, tmp_path / "prompts.pt")
    assert torch.equal(read_q16_prompts(tmp_path / "prompts.pt"), values.detach().float())
    assert torch.equal(tensors(tmp_path / "prompts.pt")["prompts"], values.detach().float())


def test_a_tensor_file_with_anything_else_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save(Attack(), tmp_path / "prompts.pt")
    with pytest.raises(
        SafetyDPOError, match=r"^Q16's prompts .*prompts\.pt cannot be read \(not tensors alone, or damaged"
    ):
        read_q16_prompts(tmp_path / "prompts.pt")
    assert not (tmp_path / "ran").exists()
    torch.save({"prompts": torch.eye(2)}, tmp_path / "prompts.pt")
    with pytest.raises(SafetyDPOError, match=r"prompts\.pt holds a dict; Q16's prompts are a tensor \(2, d\)"):
        read_q16_prompts(tmp_path / "prompts.pt")
    with pytest.raises(SafetyDPOError, match=r"nowhere\.pt does not exist: correct the judge's `path`"):
        read_q16_prompts(tmp_path / "nowhere.pt")


def test_row_1_of_the_tuned_prompts_is_inappropriate(toy, eyes_of):
    _, images, _, embeddings = toy
    # image two has cosine 1 to row 1 and c to row 0: p = e^100 / (e^100 + e^(100 c)); for image one it is 1 - p
    p = 1 / (1 + math.exp(-100 * (1 - float(embeddings[0] @ embeddings[1]))))
    assert p > 0.6  # the toy tells them apart
    rows = toy_eyes(toy, eyes_of).look(images, ["a red circle"] * 2)
    assert [row["q16"] for row in rows] == pytest.approx([1 - p, p], abs=1e-3)


class TwoFaced:
    """A CLIP whose quick embeddings are wrong by more than Q16 can bear, and whose exact ones are right."""

    half, whose = True, "Embeddings"

    def __init__(self, quick, exact):
        self.quick, self.right, self.asked = quick, exact, []

    def projected(self, images, exact=False):
        self.asked.append((list(images), exact))
        return (self.right if exact else self.quick)[images]


def test_in_bfloat16_doubtful_images_are_looked_at_again_in_float32():
    def seen(logits):
        return torch.tensor([[1.0, 1 + logit / 70.71] for logit in logits])  # about `logit` apart at length 1

    q16 = object.__new__(Q16)
    q16.prompts = torch.eye(2)
    q16.clip = TwoFaced(seen([-5.0, 0.3, -0.2, 6.0]), seen([-5.0, -0.3, 0.2, 6.0]))
    assert [p > 0.5 for p in q16(Views([0, 1, 2, 3])).scores[""]] == [False, False, True, True]
    assert q16.clip.asked == [([0, 1, 2, 3], False), ([1, 2], True)]


def test_missing_or_broken_judges_are_sentences(toy, eyes_of, tmp_path):
    with pytest.raises(SafetyDPOError, match=r"CLIP .*nowhere cannot be loaded"):
        toy_eyes(toy, eyes_of, id=str(tmp_path / "nowhere"))
    with pytest.raises(SafetyDPOError, match=r"do not exist: set the q16 judge's `path`"):
        toy_eyes(toy, eyes_of, path="nowhere.p")
    (tmp_path / "prompts.p").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SafetyDPOError, match=r"is not Q16's prompts\.p"):
        read_q16_prompts(tmp_path / "prompts.p")


def test_prompts_of_another_clip_are_said(toy, eyes_of, tmp_path):
    torch.save(torch.eye(2, 7), tmp_path / "prompts.pt")
    with pytest.raises(
        SafetyDPOError, match=r"prompts\.pt has prompts of width 7, its CLIP embeds in 96: set the q16 judge's `id`"
    ):
        toy_eyes(toy, eyes_of, path=tmp_path / "prompts.pt")
