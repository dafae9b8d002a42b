"""Distances against closed forms and torchmetrics; their standard errors against what drawing anew shows."""

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.distances import Between, Cloud, Moments, cmmd, fid, frechet_distance, kid, moments


class Given(torch.nn.Module):
    """Lets torchmetrics' distances take features instead of images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features):
        return features


def theirs(metric, x, y):
    metric.update(torch.from_numpy(y), real=True)
    metric.update(torch.from_numpy(x), real=False)
    found = metric.compute()
    return float(found[0] if isinstance(found, tuple) else found)


@pytest.mark.parametrize(("n", "m", "d"), [(60, 50, 5), (30, 80, 40), (20, 30, 64)])
def test_fid_is_that_of_torchmetrics_with_many_images_and_few(n, m, d):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)).astype("f"), (1 + 2 * rng.normal(size=(m, d))).astype("f")
    metric = FrechetInceptionDistance(feature=Given(d), input_img_size=(d,))
    expected = theirs(metric, x, y)
    assert fid(Cloud(x), Cloud(y)).value == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(*moments(x), *moments(y)) == pytest.approx(expected, rel=1e-4)
    assert fid(Cloud(x), Moments(*moments(y))).value == pytest.approx(expected, rel=1e-4)


def test_fid_by_hand():
    """(0 - 3)^2 + (1 - 2)^2; of two sets of two points: means 0 and 3, variances 2 and 8."""
    one, four = np.array([[1.0]]), np.array([[4.0]])
    assert frechet_distance(np.array([0.0]), one, np.array([3.0]), four) == pytest.approx(10)
    found = fid(Cloud(np.array([[-1.0], [1.0]])), Cloud(np.array([[1.0], [5.0]])))
    assert found.value == pytest.approx(9 + 2 + 8 - 2 * 4)


def test_kid_is_that_of_torchmetrics():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 6)).astype("f"), (rng.normal(size=(80, 6)) + 0.5).astype("f")
    metric = KernelInceptionDistance(feature=Given(6), subsets=1, subset_size=80)
    assert kid(Cloud(x), Cloud(y)).value == pytest.approx(theirs(metric, x, y), rel=1e-3)


def test_kid_takes_sets_of_unequal_size_whole():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(20, 3))
    k = lambda a, b: (a @ b.T / 3 + 1) ** 3  # noqa: E731
    expected = (k(x, x).sum() - np.trace(k(x, x))) / (30 * 29) + (k(y, y).sum() - np.trace(k(y, y))) / (20 * 19)
    assert kid(Cloud(x), Cloud(y)).value == pytest.approx(expected - 2 * k(x, y).mean())


def test_cmmd_by_hand():
    """Two images each, alike in their set, at distance d: 1000 (1 + 1 - 2 exp(-d^2 / 200))."""
    x, y = np.array([[1.0, 0.0]] * 2), np.array([[0.0, 1.0]] * 2)
    assert cmmd(Cloud(x), Cloud(y)).value == pytest.approx(2000 * (1 - np.exp(-2 / 200)))
    assert cmmd(Cloud(x), Cloud(x)).value == pytest.approx(0, abs=1e-9)


def weighted_fid(x, y, weights):
    """By the definition, with covariances of weighted images."""
    mean = np.average(x, axis=0, weights=weights)
    covariance = ((x - mean).T * weights) @ (x - mean) / weights.sum() * len(x) / (len(x) - 1)
    return frechet_distance(mean, covariance, *moments(y))


@pytest.mark.parametrize("d", [4, 12])  # fewer features than images, and more
def test_an_influence_is_how_fid_moves_with_an_images_weight(d):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, d)), rng.normal(size=(40, d)) + 0.3
    found, step = fid(Cloud(x), Cloud(y)), 1e-3
    for i in (0, 7):
        more, less = np.ones(10), np.ones(10)
        more[i], less[i] = 1 + step, 1 - step
        moved = (weighted_fid(x, y, more) - weighted_fid(x, y, less)) / (2 * step)
        assert found.own[i] == pytest.approx(moved, rel=1e-3, abs=1e-5)
    assert fid(Cloud(y), Cloud(x)).other == pytest.approx(found.own)


def half(interval):
    return (interval.ci_high - interval.ci_low) / 2


@pytest.mark.parametrize("distance", [fid, kid, cmmd])
@pytest.mark.parametrize("alike", [False, True])
def test_an_interval_is_as_wide_as_sets_drawn_anew_differ(distance, alike):
    """Both sides are drawn: on the same prompts, or each on its own."""
    rng, values, halves = np.random.default_rng(0), [], []
    for _ in range(100):
        common = rng.normal(size=(2, 80, 3))
        own, other = common[0], common[0 if alike else 1]
        x = Cloud(own + 0.5 * rng.normal(size=(80, 3)) + 0.7, [f"p{i}" for i in range(80)])
        y = Cloud(other + 0.5 * rng.normal(size=(80, 3)), [f"{'p' if alike else 'q'}{i}" for i in range(80)])
        found = Between(distance(x, y), x.groups, y.groups).estimate(-np.inf)
        values.append(found.value)
        halves.append(half(found))
    assert np.mean(halves) == pytest.approx(1.96 * np.std(values), rel=0.25)


def test_a_prompt_of_many_images_is_one_draw():
    """Every image ten times, all of one prompt: the interval does not shrink."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)) + 1, rng.normal(size=(60, 3))

    def interval(times):
        prompts = np.repeat(np.arange(60), times)
        one, other = Cloud(np.repeat(x, times, 0), prompts), Cloud(np.repeat(y, times, 0), prompts)
        return half(Between(fid(one, other), one.groups, other.groups).estimate(0))

    assert interval(10) == pytest.approx(interval(1), rel=0.02)


def test_beside_moments_the_methods_side_alone_varies():
    rng = np.random.default_rng(0)
    x, y = Cloud(rng.normal(size=(60, 3)) + 1), Cloud(rng.normal(size=(60, 3)), [f"other {i}" for i in range(60)])
    alone = Between(fid(x, Moments(*moments(y.vectors.numpy()))), x.groups, np.empty(0, object)).estimate(0)
    both = Between(fid(x, y), x.groups, y.groups).estimate(0)
    assert alone.value == pytest.approx(both.value)
    assert half(alone) < 0.9 * half(both)


def test_the_difference_of_two_distances_is_surer_than_either():
    """Two methods that moved alike, on the same prompts, from the same reference."""
    rng = np.random.default_rng(0)
    common, y = rng.normal(size=(200, 3)), Cloud(rng.normal(size=(200, 3)), range(200, 400))
    x, z = (Cloud(common + shift + 0.1 * rng.normal(size=(200, 3)), range(200)) for shift in (1.0, 1.1))
    one, other = (Between(fid(each, y), each.groups, y.groups) for each in (x, z))
    found = other.minus(one)
    assert found.value == pytest.approx(other.distance.value - one.distance.value)
    assert half(found) < 0.4 * half(one.estimate(0))
    assert found.ci_low > 0
    assert found.p_value < 0.001
    assert one.minus(one)[:4] == (0, 0, 0, 1)


def test_one_image_or_damaged_features_are_a_sentence_and_no_number():
    with pytest.raises(SafetyDPOError, match="FID needs two images or more"):
        moments(np.ones((1, 3)))
    with pytest.raises(SafetyDPOError, match="Features of images: 1 of 6 values are NaN"):
        moments(np.array([[1.0, 2.0, np.nan], [1.0, 2.0, 3.0]]))
    mean, covariance = moments(np.eye(3))
    with pytest.raises(SafetyDPOError, match="Mean and covariance of features: 3 of 3 values"):
        frechet_distance(mean, covariance, mean * np.nan, covariance)


def test_sets_without_prompts_share_none():
    """Of the same images, by number the two sides would cancel: by what they are, they are independent."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60, 3))
    alone, named = [(Cloud(x), Cloud(y)), (Cloud(x, range(60)), Cloud(y, range(60, 120)))]
    halves = [half(Between(fid(a, b), a.groups, b.groups).estimate(0)) for a, b in (alone, named)]
    assert halves[0] == halves[1]
    assert not set(alone[0].groups) & set(alone[1].groups)


def test_of_one_prompt_nothing_is_known_of_others():
    rng = np.random.default_rng(0)
    x, z, y = (Cloud(rng.normal(size=(20, 2)) + shift, ["p"] * 20) for shift in (3.0, 1.0, 0.0))
    one, other = (Between(fid(each, y), each.groups, y.groups) for each in (x, z))
    assert one.estimate(0)[1:3] == (0, np.inf)
    found = one.minus(other)
    assert found.value == one.distance.value - other.distance.value
    assert found[1:4] == (-np.inf, np.inf, 1)
