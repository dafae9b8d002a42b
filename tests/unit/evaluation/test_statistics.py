"""Intervals and distances against closed forms."""

import numpy as np
import pytest
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.statistics import (
    bootstrap_distance,
    bootstrap_mean,
    cmmd,
    fid,
    frechet_distance,
    kid,
    moments,
)


def test_a_constant_has_no_spread():
    assert bootstrap_mean(np.full(50, 0.25), 200, 0) == (0.25, 0.25, 0.25, 50)


def test_the_interval_of_a_share_is_the_binomial_one():
    estimate = bootstrap_mean(np.repeat([0.0, 1.0], [320, 80]), 4000, 0)
    half = 1.96 * (0.2 * 0.8 / 400) ** 0.5  # 0.0392
    assert estimate.value == 0.2
    assert estimate.ci_low == pytest.approx(0.2 - half, abs=0.006)
    assert estimate.ci_high == pytest.approx(0.2 + half, abs=0.006)


def test_fid_of_two_gaussians():
    # |mu1 - mu2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)) with mu (0, 0) and (3, 0), S = I and 4 I: 9 + 2 * (1 + 4 - 4) = 11
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 2, generator=rng)
    y = 2 * torch.randn(20_000, 2, generator=rng) + torch.tensor([3.0, 0.0])
    assert fid(x, y) == pytest.approx(11, rel=0.03)


def test_kid_is_zero_for_one_distribution_and_grows_with_a_shift():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(600, 4, generator=rng), torch.randn(600, 4, generator=rng)
    assert abs(kid(x, y)) < 0.05
    assert kid(x + 1, y) > 0.5


def test_the_interval_of_a_distance_holds_its_value():
    rng = np.random.default_rng(0)
    estimate = bootstrap_distance(fid, rng.normal(size=(80, 4)).astype("f"), rng.normal(size=(80, 4)).astype("f"), 0)
    assert estimate.ci_low < estimate.value < estimate.ci_high
    assert estimate.n == 80


def test_frechet_distance_of_moments_is_torchmetrics_fid():
    torch.manual_seed(0)
    x, y = torch.randn(60, 5), torch.randn(50, 5) * 2 + 1
    found = frechet_distance(*moments(x.numpy()), *moments(y.numpy()))
    assert found == pytest.approx(fid(x, y), rel=1e-4)
    one, four = np.array([[1.0]]), np.array([[4.0]])  # by hand: (0 - 3)^2 + (1 - 2)^2
    assert frechet_distance(np.array([0.0]), one, np.array([3.0]), four) == pytest.approx(10)


def test_one_image_or_damaged_features_are_a_sentence_and_no_number():
    with pytest.raises(SafetyDPOError, match="FID needs two images or more"):
        moments(np.ones((1, 3)))
    with pytest.raises(SafetyDPOError, match="Features of images: 1 of 6 values are NaN"):
        moments(np.array([[1.0, 2.0, np.nan], [1.0, 2.0, 3.0]]))
    mean, covariance = moments(np.eye(3))
    with pytest.raises(SafetyDPOError, match="Mean and covariance of features: 3 of 3 values"):
        frechet_distance(mean, covariance, mean * np.nan, covariance)
    with pytest.raises(SafetyDPOError, match="Values to average: 1 of 2 values are NaN"):
        bootstrap_mean(np.array([0.0, np.nan]), 100, 0)


def test_cmmd_by_hand():
    """One embedding each, at distance d: 1000 (1 + 1 - 2 exp(-d^2 / 200))."""
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert cmmd(x, y) == pytest.approx(2000 * (1 - np.exp(-2 / 200)))
    assert cmmd(x, x) == 0
