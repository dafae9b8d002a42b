"""Paired differences: every method against base, and the best against the second best."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from safetydpo.evaluation.distances import Between
from safetydpo.evaluation.metrics import parts_of
from safetydpo.evaluation.registry import measure
from safetydpo.evaluation.statistics import Difference, paired
from safetydpo.methods.registry import REFERENCES

NAMES = ["method", "other", "benchmark", "category", "metric"]
COLUMNS = [*NAMES, *Difference._fields, "seed"]
BASE = "base"
# Methods of one category each: which is best is no question.
EXPERT = "expert-"


class Cell(NamedTuple):
    """A method on a benchmark. images: `prompt`, `category` and the metrics of each, by prompt_id."""

    images: pd.DataFrame
    distances: Mapping[str, Between]


class Pair:
    """Two methods on a benchmark: the images of the prompt_ids that both have."""

    def __init__(self, one: Cell, other: Cell, resamples: int, seed: int) -> None:
        shared = one.images.index.intersection(other.images.index)
        self.one, self.other = one.images.loc[shared], other.images.loc[shared]
        self.prompts, self.parts = pd.factorize(self.one.prompt)[0], parts_of(self.one.category)
        self.alike = len(one.images) == len(other.images)
        self.distances = one.distances, other.distances
        self.resamples, self.seed = resamples, seed

    def difference(self, category: str, metric: str) -> dict[str, Any] | None:
        """Fields of the first's value minus the second's; None where they share none.

        Distances depend on the number of images: of unequal ones there is none.
        """
        if metric in self.distances[0]:
            one, other = (found.get(metric) for found in self.distances)
            return one.minus(other)._asdict() if one and other and self.alike else None
        if metric not in self.one or metric not in self.other or category not in self.parts:
            return None
        values, others = self.one[metric].to_numpy(), self.other[metric].to_numpy()
        known = self.parts[category] & ~np.isnan(values) & ~np.isnan(others)
        if not known.any():
            return None
        found = paired(values[known], others[known], self.prompts[known], self.resamples, self.seed)
        return found._asdict()


def differences(
    cells: Mapping[tuple[str, str], Cell], metrics: pd.DataFrame, resamples: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of the table of differences: method minus other, on the prompts that both have.

    metrics: the long table, whose values say which two methods are best; references and experts do not compete. Which
    of the two is the better one, and so `method`, the images that both have say.
    """

    @cache
    def pair(method: str, other: str, benchmark: str) -> Pair:
        return Pair(cells[method, benchmark], cells[other, benchmark], resamples, seed)

    for method, other, benchmark, category, metric in _asked(cells, metrics):
        found = pair(method, other, benchmark).difference(category, metric)
        worse = 1 if measure(metric).better == "low" else -1
        if found and other != BASE and found["value"] * worse > 0:
            method, other = other, method
            found = pair(method, other, benchmark).difference(category, metric)
        if found:
            names = (method, other, benchmark, category, metric)
            yield dict(zip(NAMES, names, strict=True)) | found | {"seed": seed}


def _asked(cells: Mapping[tuple[str, str], Cell], metrics: pd.DataFrame) -> Iterator[tuple[str, str, str, str, str]]:
    """Which two methods are compared: method, other, benchmark, category, metric."""
    metrics = metrics[~metrics.metric.str.startswith("unjudged:")]
    where = ["benchmark", "category", "metric"]
    for method, *place in metrics[["method", *where]].itertuples(index=False):
        if method != BASE and (BASE, place[0]) in cells:
            yield (method, BASE, *place)
    rivals = metrics[~metrics.method.isin(REFERENCES) & ~metrics.method.str.startswith(EXPERT)]
    for place, rows in rivals.groupby(where, sort=False):
        if len(rows) > 1:
            benchmark, category, metric = map(str, place)
            order = rows.value.sort_values(ascending=measure(metric).better == "low", kind="stable").index
            best, second = rows.method[order[:2]]
            yield best, second, benchmark, category, metric
