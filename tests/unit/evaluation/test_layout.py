"""SSIM beside base's image."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation import layout
from safetydpo.evaluation.layout import same_layout

RNG = np.random.default_rng(0)


def noise(height, width):
    return RNG.integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_layout_is_compared_on_the_objects_half_only():
    image = noise(48, 48)
    other = image.copy()
    other[:, 24:] = 0  # the mark's half is gone
    left, whole = same_layout([image, image], [other, other], ["left", None])
    assert left == pytest.approx(1, abs=1e-5)
    assert whole < 0.8


def test_flat_images_differ_in_brightness_alone():
    dark, light = (np.full((16, 16, 3), v, np.uint8) for v in (51, 102))
    # luminance (2 x 0.2 x 0.4 + c) / (0.2^2 + 0.4^2 + c) with c = 0.01^2; the rest is 1 up to float32's variances
    assert same_layout([dark], [light], [None]) == pytest.approx([0.1601 / 0.2001], abs=1e-4)


def test_images_of_other_sizes_than_bases_are_a_sentence():
    with pytest.raises(
        SafetyDPOError, match=r"^An image has 24 x 16 pixels, base's of the same prompt 16 x 16: layouts"
    ):
        same_layout([noise(16, 24)], [noise(16, 16)], [None])


@pytest.mark.parametrize("values", [2**20, 2 * 16 * 8 * 3, 1])  # all at once, in twos, one by one
def test_a_batch_is_each_of_its_pairs_whatever_their_sizes_and_sides(monkeypatch, values):
    monkeypatch.setattr(layout, "VALUES_AT_ONCE", values)
    sizes = [(16, 16), (24, 18), (16, 16), (16, 16), (24, 18), (16, 16)]
    sides = ["left", "right", "left", None, None, "right"]
    cuts = [slice(0, 8), slice(9, None), slice(0, 8), slice(None), slice(None), slice(8, None)]
    images, others = [noise(*size) for size in sizes], [noise(*size) for size in sizes]
    alone = []
    for x, y, cut in zip(images, others, cuts, strict=True):
        pair = [torch.from_numpy(a[:, cut].copy()).permute(2, 0, 1)[None].float() / 255 for a in (x, y)]
        alone.append(float(ssim(*pair, data_range=1.0, kernel_size=7, sigma=1.0)))  # type: ignore[arg-type]
    assert same_layout(images, others, sides) == pytest.approx(alone, abs=1e-6)
