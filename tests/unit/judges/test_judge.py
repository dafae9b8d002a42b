"""What all judges have in common: where bfloat16 is looked at again, and what a policy's file may be."""

import math

import numpy as np
import pytest
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.judges.judge import DOUBT, Views, policy_of, seen_again, seen_of


def logit(p):
    return math.log(p / (1 - p))


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9, 0.95])
def test_no_logit_that_bfloat16_moves_by_1_4_passes_a_threshold_unseen(threshold):
    assert logit(threshold) - logit(DOUBT[0]) >= 1.4
    assert logit(DOUBT[1]) - logit(threshold) >= 1.4


@pytest.mark.parametrize("half", [True, False])
def test_images_with_a_probability_in_doubt_are_looked_at_again(half):
    quick = torch.tensor([[0.001, 0.5], [0.001, 0.999], [0.02, 0.025], [0.03, 0.999], [0.989, 0.987]])
    exact = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8], [0.9, 0.95]])
    images = [np.full((1, 1, 3), i, np.uint8) for i in range(5)]
    asked = []

    def look(views, again):
        seen = [int(image[0, 0, 0]) for image in views.images]
        asked.append((seen, again))
        return (exact if again else quick)[seen].clone()

    found = seen_again(Views(images), half, look)
    doubtful = [0, 3, 4] if half else []
    assert asked == [([0, 1, 2, 3, 4], False), (doubtful, True)][: 2 if half else 1]
    for i in range(5):
        assert torch.equal(found[i], (exact if i in doubtful else quick)[i])


def test_nothing_is_asked_again_where_nothing_is_in_doubt():
    asked = []

    def look(views, again):
        asked.append(again)
        return torch.tensor([[0.999]] * len(views.images))

    seen_again(Views([np.zeros((1, 1, 3), np.uint8)]), True, look)
    assert asked == [False]


class OneClip:
    """A CLIP that says how it was asked."""

    def __init__(self, half):
        self.half, self.asked = half, []

    def projected(self, images, exact=False):
        self.asked.append(exact)
        return torch.tensor([[float(exact)]])


def test_judges_share_one_look_of_clip_and_a_second_one_only_in_float32():
    images = [np.zeros((1, 1, 3), np.uint8)]
    views, clip, other = Views(images), OneClip(half=True), OneClip(half=False)
    found = [views.projected(clip, exact) for exact in (False, False, True, True)]
    assert [float(x) for x in found] == [0, 0, 1, 1]
    assert clip.asked == [False, True, True]
    assert [float(views.projected(other, exact)) for exact in (False, True)] == [0, 0]
    assert other.asked == [False]  # it computes in float32 anyway


def test_columns_of_probabilities_are_the_judges_own_and_its_labels():
    seen = seen_of(["a", "b"], torch.tensor([[0.75, 0.25, 0.75], [0.5, 0.5, 0.125]]), "it")
    assert dict(seen.scores) == {"": [0.75, 0.5], "a": [0.25, 0.5], "b": [0.75, 0.125]}
    with pytest.raises(SafetyDPOError, match=r"^Probabilities by it: 1 of 2 values are NaN or infinite; the judge is"):
        seen_of(["a"], torch.tensor([[0.5, float("nan")]]), "it")


def test_a_policy_that_cannot_be_read_is_a_sentence(tmp_path):
    path = tmp_path / "policy.txt"
    path.write_bytes("\ufeff No kites. \n".encode())
    assert policy_of(path, "guard") == "No kites."
    path.write_bytes(b"caf\xe9")
    with pytest.raises(SafetyDPOError, match=r"policy\.txt is not UTF-8 \(byte 3\): save it as UTF-8\.$"):
        policy_of(path, "guard")
