"""Means and paired differences of means, with 95 % intervals over prompts.

Images of one prompt are alike, so it is prompts that are drawn again: `groups` says of which prompt each image is, by
any value that is equal for images of the same prompt.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from safetydpo.storage.finite import finite

Z = float(stats.norm.ppf(0.975))
TAILS = [0.025, 0.975]
# Numbers that the bootstrap holds at a time.
HELD = 1_000_000
# Prompts that must vary to tell how alike images of a prompt are; with fewer, they count in part as if they agreed.
# Of 5 and 10 the one whose intervals of 0.1 of 40 prompts of 7 images hold 95 % (simulated; 10: 97 %).
FEW = 5


class Estimate(NamedTuple):
    """A value with its 95 % interval and the number of images behind it."""

    value: float
    ci_low: float
    ci_high: float
    n: int


class Difference(NamedTuple):
    """Of two methods on the same images; p_value: two-sided, of no difference, by `test`."""

    value: float
    ci_low: float
    ci_high: float
    p_value: float
    n: int
    test: str


class Sums(NamedTuple):
    """Sums and numbers of values by prompt, each (g,)."""

    sums: np.ndarray
    counts: np.ndarray

    @property
    def mean(self) -> float:
        """Of all values."""
        return float(self.sums.sum() / self.counts.sum())

    @property
    def variance(self) -> float:
        """Of the mean, linearised; infinite for a single prompt, of whose kind nothing is known."""
        g = len(self.sums)
        if g == 1:
            return np.inf
        return g / (g - 1) * float(np.square(self.sums - self.mean * self.counts).sum()) / self.counts.sum() ** 2


def estimate(
    values: np.ndarray, groups: np.ndarray | None = None, rate: bool = False, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of (n,) values, with an interval over prompts; groups (n,): None where each image has its own.

    rate: whether the values are from 0 to 1; their interval is Wilson's at the effective number of images, and has a
    width where all are equal. Else it is a percentile bootstrap, which has none there. SafetyDPOError where a value is
    NaN or infinite.
    """
    values = finite(np.asarray(values, dtype=np.float64), "Values to average", "score the images again")
    by_prompt = sums_of(values, groups)
    if rate:
        low, high = _wilson(values, by_prompt)
    else:
        low, high = np.quantile(_means(by_prompt, resamples, seed), TAILS)
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def paired(
    values: np.ndarray, others: np.ndarray, groups: np.ndarray | None = None, resamples: int = 2000, seed: int = 0
) -> Difference:
    """Mean of values - others, (n,) each, of the same images in the same order.

    Zeros and ones: exact McNemar where every prompt has one image, else its like for prompts' sums (permutation); the
    interval is Bonett and Price's (2012). Other numbers: percentile bootstrap; its p is at least 2^(1 - g), that of g
    prompts whose signs all agree, less than which no test says that takes no shape of them for granted.
    """
    change = finite(np.asarray(values, float) - np.asarray(others, float), "Values to compare", "score them again")
    by_prompt, value = sums_of(change, groups), float(change.mean())
    if not (np.isin(values, (0, 1)).all() and np.isin(others, (0, 1)).all()):
        means = _means(by_prompt, resamples, seed)
        low, high = np.quantile(means, TAILS)
        p = 2 * max(1 / len(means), min((means <= 0).mean(), (means >= 0).mean()))
        p = min(1.0, max(p, 2.0 ** (1 - len(by_prompt.sums))))
        return Difference(value, float(low), float(high), p, len(change), "bootstrap")
    low, high = _bonett_price(by_prompt)
    if by_prompt.counts.max() == 1:
        table = [[0, int((change > 0).sum())], [int((change < 0).sum()), 0]]
        p = float(mcnemar(table, exact=True).pvalue)  # type: ignore[attr-defined]
        return Difference(value, low, high, p, len(change), "mcnemar")
    return Difference(value, low, high, _flipped(by_prompt.sums), len(change), "permutation")


def sums_of(values: np.ndarray, groups: np.ndarray | None) -> Sums:
    """Values (n,) by prompt."""
    if groups is None:
        return Sums(values, np.ones(len(values)))
    codes = np.unique(groups, return_inverse=True)[1]
    return Sums(np.bincount(codes, values), np.bincount(codes).astype(float))


def _wilson(values: np.ndarray, by_prompt: Sums) -> tuple[float, float]:
    """Wilson's interval of a share at n / deff images: deff is how much the variance of the mean is that of as many
    independent zeros and ones, at least 1 where the values are those. Where nothing varies: at the number of prompts,
    and towards it where few prompts do.
    """
    n, g, share = len(values), len(by_prompt.sums), by_prompt.mean
    binary = np.isin(values, (0, 1)).all()
    if binary and g == n:
        effective = n
    elif g == 1 or np.allclose(by_prompt.sums, share * by_prompt.counts):
        effective = g
    else:
        deff = by_prompt.variance / (share * (1 - share) / n)
        deff = max(deff, 1.0) if binary else deff
        varied = min((by_prompt.sums > 0).sum(), (by_prompt.sums < by_prompt.counts).sum())
        effective = n / max(deff, _shrunk(deff, n / g, varied)) * (Z / stats.t.ppf(0.975, g - 1)) ** 2
    low, high = proportion_confint(share * effective, effective, method="wilson")
    return float(low), float(high)  # type: ignore[arg-type]


def _shrunk(found: float, agreed: float, varied: int) -> float:
    """What was found of images of a prompt, towards what it is where they all agree, where few prompts varied."""
    known = min(1.0, varied / FEW)
    return known * found + (1 - known) * agreed


def _means(by_prompt: Sums, resamples: int, seed: int) -> np.ndarray:
    """Means of prompts drawn again (resamples,), as far apart as t's distribution asks of few (Hesterberg 2015); of a
    single prompt, or where all are equal, the mean alone.
    """
    g, mean = len(by_prompt.sums), by_prompt.mean
    if g == 1 or not np.ptp(by_prompt.sums / by_prompt.counts):
        return np.full(resamples, mean)
    drawn = stats.bootstrap(
        tuple(by_prompt),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        n_resamples=resamples,
        batch=max(1, HELD // g),
        vectorized=True,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).bootstrap_distribution
    return mean + (drawn - mean) * stats.t.ppf(0.975, g - 1) / Z * (g / (g - 1)) ** 0.5


def _bonett_price(by_prompt: Sums) -> tuple[float, float]:
    """Interval of a difference of paired shares: the normal one after two made-up prompts, on which either side wins.

    They have one image; where few prompts differ, towards as many as prompts have on average, and where prompts have
    several the interval is t's.
    """
    size = _shrunk(1.0, by_prompt.counts.mean(), int(np.count_nonzero(by_prompt.sums)))
    more = Sums(np.append(by_prompt.sums, (size, -size)), np.append(by_prompt.counts, (size, size)))
    wide = Z if by_prompt.counts.max() == 1 else float(stats.t.ppf(0.975, len(more.sums) - 1))
    half = wide * more.variance**0.5
    return max(-1.0, more.mean - half), min(1.0, more.mean + half)


def _flipped(sums: np.ndarray) -> float:
    """Two-sided p-value of prompts' sums (g,), whole numbers, whose signs could as well be the other ones: exact.

    With sums of -1, 0 and 1 it is McNemar's. chances[k]: of all signs, that those drawn positive add up to k.
    """
    sizes, chances = np.abs(sums[sums != 0]).astype(int), np.ones(1)
    for size in sizes:
        chances = (np.append(chances, np.zeros(size)) + np.append(np.zeros(size), chances)) / 2
    drawn = np.abs(2 * np.arange(len(chances)) - sizes.sum())
    return float(min(1.0, chances[drawn >= abs(sums.sum())].sum()))
