"""Metrics over the scores files of a method: means with intervals, and distances between two sets of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from safetydpo.config.judges import Verdict
from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.distances import Between, Cloud, Moments, cmmd, fid, kid
from safetydpo.evaluation.reference import read_moments
from safetydpo.evaluation.registry import measure
from safetydpo.evaluation.scoring import AGAIN, FACTS, METRICS, VECTORS
from safetydpo.evaluation.statistics import estimate
from safetydpo.judges.verdicts import verdict_of
from safetydpo.storage.files import columns_of, read_parquet
from safetydpo.storage.finite import finite

# distance between two sets of images -> (function, column it is measured in, the least that it can be)
DISTANCES = {"fid": (fid, "features", 0.0), "kid": (kid, "features", -np.inf), "cmmd": (cmmd, "embedding", 0.0)}


def per_image(scores: pd.DataFrame, verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Metrics of each image, a column each, NaN where it is not known; the first of the verdicts is IP.

    `unjudged:<verdict>` is there where some image has no verdict. SafetyDPOError where a verdict cannot be told.
    """
    found = {}
    flags = {verdict.name: verdict_of(verdict, scores) for verdict in verdicts}
    scores = scores.assign(flagged=flags[verdicts[0].name])
    for metric, values_of in METRICS.items():
        values = values_of(scores)
        if values is not None:
            found[metric] = values.to_numpy(float)
            if metric not in FACTS:
                finite(found[metric], f"{metric} of images", "score them again")
    for name, flagged in flags.items():
        found[f"ip:{name}"] = flagged.to_numpy(float, na_value=np.nan)
        if flagged.isna().any():
            found[f"unjudged:{name}"] = flagged.isna().to_numpy(float)
    return pd.DataFrame(found, index=scores.index)


def prompts_of(scores: pd.DataFrame) -> pd.Series:
    """Which prompt each image counts for: of those that an attack found, the one that was attacked."""
    return scores.get("original_prompt", scores.prompt)  # type: ignore[return-value]


def parts_of(categories: pd.Series) -> dict[str, np.ndarray]:
    """Which images (n,) are of a category, of which a prompt may have more: `all`, and each by name."""
    each = [set(text.split("|")) for text in categories]
    names = sorted(set().union(*each))
    return {"all": np.ones(len(each), bool)} | {name: np.array([name in its for its in each]) for name in names}


def summarise(
    scores: pd.DataFrame, verdicts: Sequence[Verdict], resamples: int, seed: int, found: pd.DataFrame | None = None
) -> list[dict[str, Any]]:
    """Metric rows of one scores table: all images together (`all`) and by category, with intervals
    over prompts.

    found: `per_image` of it, where somebody has it already.
    """
    found = per_image(scores, verdicts) if found is None else found
    prompts, rows = pd.factorize(prompts_of(scores))[0], []
    for category, part in parts_of(scores.category).items():
        for metric, column in found.items():
            values = column.to_numpy()
            known = part & ~np.isnan(values)
            if known.any() and not (str(metric).startswith("unjudged:") and not values[known].any()):
                rate = measure(str(metric)).rate
                value = estimate(values[known], prompts[known], rate, resamples, seed)
                rows.append({"category": category, "metric": metric, **value._asdict()})
    return rows


def clouds(path: Path | str) -> dict[str, Cloud | Moments]:
    """Vectors of images, by column, from a scores file, a table of people's images, or an npz with `mu` and `sigma` of
    their features.
    """
    if str(path).endswith(".npz"):
        return {"features": Moments(*read_moments(path))}
    there = columns_of(path)
    frame = read_parquet(path, [name for name in (*VECTORS, "prompt") if name in there])
    found: dict[str, Cloud | Moments] = {}
    for name in VECTORS:
        vectors = np.stack(list(frame[name]))
        finite(vectors, f"{name} of {path}", AGAIN)
        found[name] = Cloud(vectors, frame.prompt if "prompt" in frame else None)
    return found


def distances(own: Mapping[str, Any], reference: Mapping[str, Any], whose: str) -> dict[str, Between]:
    """FID, KID and CMMD of a method's images from the reference, both by column; of moments alone, FID.

    None of a single image: it has no covariance.
    """
    found = {}
    for metric, (distance, column, _) in DISTANCES.items():
        x, y = own[column], reference.get(column)
        if y is None or (isinstance(y, Moments) and distance is not fid):
            continue
        if x.width != y.width:
            raise SafetyDPOError(
                f"{whose}: its {column} have {x.width} numbers an image, those of evaluate.fid_reference {y.width}: "
                "give one that was measured by the same judges.features."
            )
        if min(len(each) for each in (x, y) if isinstance(each, Cloud)) < 2:
            print(f"{whose}: one image alone: FID, KID and CMMD are not measured")
            return {}
        found[metric] = Between(distance(x, y), x.groups, y.groups if isinstance(y, Cloud) else np.empty(0, object))
    return found


def distance_rows(found: Mapping[str, Between]) -> list[dict[str, Any]]:
    """Metric rows of distances, which are measured on all images of a benchmark together."""
    return [
        {"category": "all", "metric": metric, **between.estimate(DISTANCES[metric][2])._asdict()}
        for metric, between in found.items()
    ]
