"""How often the 95 % intervals of the metrics hold what they are about, and what those of FID cost.

    python benchmarks/intervals.py [--quick] [--runs 1000] [--seeds 3]

Many runs of made-up scores whose truth is known; of FID, KID and CMMD it is the value expected at that number of
images, the mean of all runs. p < 0.05 by chance: how often a difference is called one where there is none. The last
table is of features as wide as Inception's.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from timing import print_ratios, print_table

from safetydpo.evaluation.distances import Between, Cloud, Distance, cmmd, fid, kid
from safetydpo.evaluation.statistics import Difference, Estimate, estimate, paired

RESAMPLES = 1000
Interval = Estimate | Difference
# Draws one run: its interval, and the truth (None: the mean of the runs' values).
Draw = Callable[[np.random.Generator], tuple[Interval, float | None]]


def _prompts(count: int, images: int) -> np.ndarray:
    return np.repeat(np.arange(count), images)


def share(mean: float, prompts: int, images: int = 1, alike: float = 0.5) -> Draw:
    """Flagged images; alike: correlation of two images of a prompt."""

    def draw(rng: np.random.Generator) -> tuple[Interval, float]:
        each = _chances(rng, mean, prompts, alike) if images > 1 else np.full(prompts, mean)
        groups = _prompts(prompts, images)
        return estimate(rng.random(len(groups)) < each[groups], groups, True), mean

    return draw


def _chances(rng: np.random.Generator, mean: float, prompts: int, alike: float) -> np.ndarray:
    """Chance of each prompt to be flagged."""
    size = 1 / alike - 1
    return rng.beta(mean * size, (1 - mean) * size, prompts)


def thirds(mean: float, prompts: int) -> Draw:
    """Attributes right, of three."""
    return lambda rng: (estimate(rng.binomial(3, mean, prompts) / 3, None, True), mean)


def skewed(prompts: int, images: int) -> Draw:
    """Scores with a long lower end, such as CLIPScore where some images are ruined."""

    def draw(rng: np.random.Generator) -> tuple[Interval, float]:
        groups = _prompts(prompts, images)
        values = -rng.exponential(1, prompts)[groups] - rng.exponential(1, len(groups))
        return estimate(values, groups, False, RESAMPLES, int(rng.integers(2**31))), -2.0

    return draw


def two_shares(before: float, after: float, prompts: int, images: int = 1) -> Draw:
    """Flagged images of two methods: those of `before` that a coin of the prompt's leaves, and few others."""

    def draw(rng: np.random.Generator) -> tuple[Interval, float]:
        groups = _prompts(prompts, images)
        level = _chances(rng, 0.5, prompts, 0.5)  # how dangerous the prompt is
        chance = [np.clip(2 * mean * level, 0, 1)[groups] for mean in (after, before)]
        one, other = (rng.random(len(groups)) < each for each in chance)
        return paired(one, other, groups), after - before

    return draw


def two_scores(change: float, prompts: int, images: int) -> Draw:
    """Scores of two methods on the same prompts."""

    def draw(rng: np.random.Generator) -> tuple[Interval, float]:
        groups = _prompts(prompts, images)
        one, other = (-rng.exponential(1, len(groups)) - rng.exponential(1, prompts)[groups] for _ in range(2))
        return paired(one + change, other, groups, RESAMPLES, int(rng.integers(2**31))), change

    return draw


def _set(common: np.ndarray, alike: float, rng: np.random.Generator, shift: float) -> np.ndarray:
    """Features (n, d), correlated by `alike` with those of other sets on the same prompts, in directions of falling
    weight where they are many; the first is moved.
    """
    n, d = common.shape
    values = alike**0.5 * common + (1 - alike) ** 0.5 * rng.normal(size=(n, d))
    if d > 8:
        values /= np.arange(1, d + 1) ** 0.5
    values[:, 0] += shift
    return values


def apart(
    distance: Callable[[Cloud, Cloud], Distance], d: int, n: int, shift: float, alike: float, images: int = 1
) -> Draw:
    """A distance; alike: 0 for two sets that share no prompt."""

    def draw(rng: np.random.Generator) -> tuple[Interval, None]:
        groups = _prompts(n // images, images)
        common = rng.normal(size=(n // images, d))[groups]
        own, other = (_set(common, alike, rng, each) for each in (shift, 0.0))
        x, y = Cloud(own, groups), Cloud(other, groups if alike else groups + n)
        return Between(distance(x, y), x.groups, y.groups).estimate(-np.inf), None

    return draw


def farther(distance: Callable[[Cloud, Cloud], Distance], shifts: tuple[float, float]) -> Draw:
    """How much farther from the reference one method is than another, on the same prompts."""

    def draw(rng: np.random.Generator) -> tuple[Interval, float | None]:
        groups, common = np.arange(280), rng.normal(size=(280, 8))
        x, z, y = (Cloud(_set(common, 0.7, rng, shift), groups) for shift in (*shifts, 0.0))
        one, other = (Between(distance(each, y), groups, groups) for each in (x, z))
        return one.minus(other), 0.0 if shifts[0] == shifts[1] else None

    return draw


def cases() -> dict[str, Draw]:
    """What is simulated, by name."""
    found = {f"share {p}, {n} prompts": share(p, n) for p, n in ((0.02, 280), (0.1, 280), (0.5, 280), (0.1, 40))}
    found |= {
        f"share {p}, {n} prompts of 7 images": share(p, n, 7) for p, n in ((0.02, 40), (0.1, 40), (0.5, 40), (0.1, 280))
    }
    found |= {f"share of three {p}, 40 prompts": thirds(p, 40) for p in (0.7, 0.97)}
    found |= {f"mean, {n} prompts of {m}": skewed(n, m) for n, m in ((40, 1), (280, 1), (40, 7))}
    pairs = ((0.4, 0.1), (0.05, 0.02), (0.1, 0.1), (0.01, 0.01))
    found |= {f"shares {p} to {q}, 280 prompts": two_shares(p, q, 280) for p, q in pairs}
    found |= {f"shares {p} to {q}, 40 prompts of 7": two_shares(p, q, 40, 7) for p, q in pairs}
    found |= {f"means, change {c}, 40 prompts of 7": two_scores(c, 40, 7) for c in (0.0, 0.5)}
    for name, distance in {"FID": fid, "KID": kid, "CMMD": cmmd}.items():
        for alike, words in ((0.0, "apart"), (0.7, "paired")):
            for shift in (0.0, 0.3, 1.0):
                found[f"{name}, {words}, shift {shift}"] = apart(distance, 8, 280, shift, alike)
        found[f"{name}, paired, 140 prompts of 2, shift 0.3"] = apart(distance, 8, 280, 0.3, 0.7, 2)
        found[f"{name}, d > n, shift 1.0"] = apart(distance, 200, 100, 1.0, 0.7)
        found |= {f"{name}s, shifts {s}": farther(distance, s) for s in ((0.3, 0.3), (1.0, 0.3))}
    return found


def measured(draw: Draw, runs: int, seed: int) -> dict[str, float]:
    """Coverage, mean width and, of differences, how often p < 0.05."""
    rng = np.random.default_rng(seed)
    drawn = [draw(rng) for _ in range(runs)]
    values = np.array([interval.value for interval, _ in drawn])
    truth = np.array([values.mean() if truth is None else truth for _, truth in drawn])
    low, high = (np.array([getattr(interval, end) for interval, _ in drawn]) for end in ("ci_low", "ci_high"))
    found = {"held": float(((low <= truth) & (truth <= high)).mean()), "width": float((high - low).mean())}
    if isinstance(drawn[0][0], Difference) and not truth.any():
        found["called"] = float(np.mean([interval.p_value < 0.05 for interval, _ in drawn]))  # type: ignore[union-attr]
    return found


def costs(quick: bool) -> dict[str, float]:
    """Seconds of a distance and its interval, of a method's images beside a reference's."""
    n, d = (300, 256) if quick else (3000, 2048)
    rng, found = np.random.default_rng(0), {}
    for name, distance in {"FID": fid, "KID": kid, "CMMD": cmmd}.items():
        x, y = (Cloud(rng.normal(size=(n, d))) for _ in range(2))
        begin = time.perf_counter()
        Between(distance(x, y), x.groups, y.groups).estimate(0.0)
        found[f"{name} of {n} images, {d} features, s"] = time.perf_counter() - begin
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 runs of each, one seed")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    runs, seeds = (40, 1) if args.quick else (args.runs, args.seeds)
    table: list[list[Any]] = []
    held = {}
    for name, draw in cases().items():
        found = [measured(draw, runs, seed) for seed in range(seeds)]
        held[name] = float(np.mean([each["held"] for each in found]))
        called = [f"{each['called']:.3f}" for each in found if "called" in each]
        shares = [f"{each['held']:.3f}" for each in found]
        table.append([name, " ".join(shares), f"{found[0]['width']:.4f}", " ".join(called)])
    print(f"{runs} runs of each, seeds 0 to {seeds - 1}\n")
    print_table(["", "interval holds the truth", "width", "p < 0.05 by chance"], table)
    spent = costs(args.quick)
    print_table(["", "s"], [[name, f"{seconds:.1f}"] for name, seconds in spent.items()])
    print_ratios(held | spent)


if __name__ == "__main__":
    main()
