"""Metrics over the scores files of a method: means with intervals, and distances between two methods' images."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from safetydpo.evaluation.scoring import FACTS, METRICS, VECTORS, refuse_nan
from safetydpo.evaluation.statistics import bootstrap_distance, bootstrap_mean, cmmd, fid, kid
from safetydpo.storage.files import columns_of, read_parquet
from safetydpo.storage.finite import finite

# distance between two methods' images -> (function, column it is measured in)
DISTANCES = {"fid": (fid, "features"), "kid": (kid, "features"), "cmmd": (cmmd, "embedding")}


def read_scores(path: Path | str) -> pd.DataFrame:
    """A scores file without its vectors; SafetyDPOError where it lacks a number that it must have."""
    scores = read_parquet(path, [name for name in columns_of(path) if name not in VECTORS])
    return refuse_nan(scores, str(path), "delete it and rerun snakemake")


def summarise(scores: pd.DataFrame, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Metric rows of one scores table: all images together (`all`) and by category, of which a prompt may have more."""
    rows = []
    each = scores.assign(category=scores.category.str.split("|")).explode("category")
    groups = [("all", scores), *each.groupby("category")]
    for category, part in groups:
        for metric, values_of in METRICS.items():
            values = values_of(part)
            if values is not None and metric in FACTS:
                values = values.dropna()
            if values is None or values.empty:
                continue
            estimate = bootstrap_mean(values.to_numpy(float), resamples, seed)
            rows.append({"category": category, "metric": metric, **estimate._asdict()})
    return rows


def distances(scores: pd.DataFrame, reference: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """FID, KID and CMMD of a method's images from the reference method's on the same benchmark.

    None of a single image: it has no covariance.
    """
    rows = []
    if min(len(scores), len(reference)) < 2:
        print("one image alone: FID, KID and CMMD are not measured")
        return rows
    for metric, (distance, column) in DISTANCES.items():
        x, y = (np.stack(list(frame[column])).astype(np.float32) for frame in (scores, reference))
        for values in (x, y):
            finite(values, f"{metric}: {column} of images", "delete their scores and rerun snakemake")
        rows.append({"category": "all", "metric": metric, **bootstrap_distance(distance, x, y, seed)._asdict()})
    return rows
