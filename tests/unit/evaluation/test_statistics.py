"""Intervals and tests against closed forms, published examples and other libraries."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.statistics import estimate, paired


def test_a_mean_of_equal_values_has_no_spread():
    assert estimate(np.full(50, 0.25), resamples=200) == (0.25, 0.25, 0.25, 50)


def test_the_interval_of_a_mean_is_the_normal_one_where_images_are_many():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = estimate(values, resamples=4000)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.ci_low, found.ci_high) == pytest.approx((found.value - half, found.value + half), abs=0.02)


def test_of_nothing_flagged_the_interval_has_a_width():
    """Wilson: 0 of n ends at z^2 / (n + z^2)."""
    assert estimate(np.zeros(40), rate=True) == pytest.approx((0, 0, 1.96**2 / (40 + 1.96**2), 40), abs=1e-4)
    assert estimate(np.ones(280), rate=True)[:3] == pytest.approx((1, 1 - 0.01353, 1), abs=1e-4)


def test_ten_images_that_agree_count_as_one():
    """44 of 100 prompts: ten images each, all the same, say no more of prompts than one each."""
    flagged = np.repeat([1.0, 0.0], [44, 56])
    prompts = np.repeat([f"prompt {i}" for i in range(100)], 10)
    one, ten = estimate(flagged, rate=True), estimate(np.repeat(flagged, 10), prompts, True)
    assert one[1:3] == pytest.approx(proportion_confint(44, 100, method="wilson"))
    assert one[1:3] == pytest.approx((0.347, 0.538), abs=0.001)
    assert ten[1:3] == pytest.approx(one[1:3], abs=0.003)
    assert (one.n, ten.n) == (100, 1000)
    scores = estimate(np.repeat(flagged, 10), prompts, resamples=4000)  # the same by the bootstrap
    assert scores[1:3] == pytest.approx((0.343, 0.537), abs=0.015)
    assert estimate(np.zeros(1000), prompts, True)[1:3] == estimate(np.zeros(100), rate=True)[1:3]


def test_images_of_a_prompt_that_differ_by_chance_count_nearly_as_all():
    rng = np.random.default_rng(0)
    found = estimate(rng.random(2800) < 0.3, np.repeat(np.arange(400), 7), True)
    assert found.ci_high - found.ci_low == pytest.approx(2 * 1.96 * (0.21 / 2800) ** 0.5, rel=0.1)


def test_shares_of_three_have_a_narrower_interval_than_zeros_and_ones():
    thirds = np.random.default_rng(0).binomial(3, 0.9, 300) / 3
    found = estimate(thirds, rate=True)
    assert found.ci_high - found.ci_low == pytest.approx(2 * 1.96 * thirds.std() / 300**0.5, rel=0.03)


def test_few_prompts_are_as_unsure_as_t_says():
    values = np.random.default_rng(0).normal(0, 1, 8)
    found = estimate(values, resamples=20_000)
    half = stats.t.ppf(0.975, 7) * values.std(ddof=1) / 8**0.5
    assert (found.ci_high - found.ci_low) / 2 == pytest.approx(half, rel=0.05)


def test_one_prompt_says_nothing_of_others():
    found = estimate(np.array([1.0, 0.0, 1.0]), np.zeros(3), True)
    assert found[1:3] == pytest.approx(proportion_confint(2 / 3, 1, method="wilson"))


def test_a_value_that_is_none_has_no_mean():
    with pytest.raises(SafetyDPOError, match="Values to average: 1 of 2 values are NaN"):
        estimate(np.array([0.0, np.nan]))


def test_flags_of_one_image_a_prompt_are_compared_by_mcnemar():
    """15 prompts are flagged by one alone, 4 by the other: twice the binomial tail at 4 of 19."""
    one, other = np.zeros(100), np.zeros(100)
    one[:25], other[10:29] = 1, 1  # 10 alone, 15 both, 4 alone
    found = paired(one, other)
    assert found.p_value == pytest.approx(2 * stats.binom.cdf(4, 14, 0.5))
    assert (found.value, found.n, found.test) == (pytest.approx(0.06), 100, "mcnemar")
    # Bonett and Price: (10 - 4) / 102, variance ((11 + 5) / 102 - (6 / 102)^2) / 102, here over 101
    centre, half = 6 / 102, 1.96 * ((16 / 102 - (6 / 102) ** 2) / 101) ** 0.5
    assert (found.ci_low, found.ci_high) == pytest.approx((centre - half, centre + half), abs=1e-4)


def test_equal_flags_differ_by_nothing_within_an_interval():
    found = paired(np.zeros(98), np.zeros(98))
    assert (found.value, found.p_value) == (0, 1)
    assert found.ci_high == -found.ci_low == pytest.approx(1.96 * (2 / 100 / 99) ** 0.5, abs=1e-4)


def test_prompts_of_several_images_are_flipped_whole():
    """Sums of prompts 2, 2, 2, 1: as far from 0 as 7 are 2 of 16 signs; by images it would be 2 of 128."""
    prompts = np.repeat(np.arange(6), 2)
    one = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1])
    other = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    found = paired(one, other, prompts)
    assert (found.p_value, found.test) == (2 / 16, "permutation")
    assert mcnemar([[0, 7], [0, 0]], exact=True).pvalue == 2 / 128


def test_signs_of_single_images_flipped_are_mcnemar():
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 60)) < [[0.5], [0.3]]
    twice = np.append(np.arange(60), 59)  # a second image of the last prompt, on which both agree
    found = paired(np.append(one, True), np.append(other, True), twice)
    assert found.test == "permutation"
    assert found.p_value == pytest.approx(paired(one, other).p_value)


def test_scores_are_compared_by_prompt():
    """Ten images of a prompt that change as one tell of forty prompts, not of four hundred."""
    change = np.random.default_rng(1).normal(0.5, 1, 40)
    base = np.random.default_rng(2).normal(30, 5, 400)
    each = paired(base + np.repeat(change, 10), base, np.repeat(np.arange(40), 10))
    apart = paired(base + np.repeat(change, 10), base)
    assert (each.value, each.test) == (pytest.approx(change.mean()), "bootstrap")
    assert (each.ci_high - each.ci_low) / (apart.ci_high - apart.ci_low) == pytest.approx(10**0.5, rel=0.15)
    assert (each.p_value > 0.05) == (each.ci_low < 0 < each.ci_high)
    assert paired(base + 1, base).p_value == pytest.approx(2 / 2000)  # no resample is at 0 or below
    assert paired(base, base)[:4] == (0, 0, 0, 1)


def test_few_prompts_say_no_more_than_their_signs():
    """Of g prompts that all agree, the p of flipped signs is 2 of 2^g; of one prompt it is 1."""
    assert paired([80.0], [80.5]).p_value == 1  # type: ignore[arg-type]
    many = np.random.default_rng(0).normal(5, 0.1, 60)  # images of one prompt
    assert paired(many, np.zeros(60), np.zeros(60)).p_value == 1
    equal = paired(np.full(3, 2 / 3), np.ones(3))
    assert (equal.value, equal.p_value, equal.test) == (pytest.approx(-1 / 3), 2 / 2**3, "bootstrap")
    assert paired(np.array([5.0, 5.1, 4.9, 5.2]), np.zeros(4)).p_value == 2 / 2**4
    assert paired(np.full(3, 0.5), np.full(3, 0.5)).p_value == 1


def high(*flagged):
    """The upper end for 40 prompts of seven images, the first of which have so many flagged."""
    values = np.zeros((40, 7))
    for row, count in zip(values, flagged, strict=False):
        row[:count] = 1
    return estimate(values.ravel(), np.repeat(np.arange(40), 7), True).ci_high


def test_one_flagged_image_makes_no_interval_four_times_as_narrow():
    """Of 40 prompts of seven images one prompt varies: a fifth of its design effect, 1, and four fifths of 7."""
    assert high() == pytest.approx(1.96**2 / (40 + 1.96**2), abs=1e-4)  # 0.088
    effective = 280 / (1 / 5 + 7 * 4 / 5) * (1.96 / stats.t.ppf(0.975, 39)) ** 2
    wilson = proportion_confint(effective / 280, effective, method="wilson")
    assert high(1) == pytest.approx(wilson[1], abs=1e-4)
    assert 0.08 < high(1) < high()
    assert high(1, 1) > 0.07
    assert high(7) == pytest.approx(0.136, abs=0.001)  # the whole of a prompt: the design effect is 7 already


def test_made_up_prompts_have_one_image_where_enough_prompts_differ():
    """Ten prompts of four images, of six of which one flags two more; by hand, with t of 11 degrees."""
    prompts, one = np.repeat(np.arange(10), 4), np.zeros(40)
    one[np.arange(6) * 4], one[np.arange(6) * 4 + 1] = 1, 1
    found = paired(one, np.zeros(40), prompts)
    mean = 12 / 42
    squares = 6 * (2 - 4 * mean) ** 2 + 4 * (4 * mean) ** 2 + (1 - mean) ** 2 + (1 + mean) ** 2
    half = 2.20099 * (12 / 11 * squares) ** 0.5 / 42
    assert (found.ci_low, found.ci_high) == pytest.approx((mean - half, mean + half), abs=1e-5)
    nothing = paired(np.zeros(40), np.zeros(40), prompts)  # none differs: made-up prompts of four images
    assert nothing.ci_high == pytest.approx(2.20099 * (12 / 11 * 32) ** 0.5 / 48, abs=1e-5)
