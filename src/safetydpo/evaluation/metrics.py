"""Metrics over the scores of a method: means over images, with intervals over prompts. Free of torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from safetydpo.config.judges import Verdict
from safetydpo.evaluation.registry import measure
from safetydpo.evaluation.scores import FACTS, METRICS
from safetydpo.evaluation.statistics import estimate
from safetydpo.judges.verdicts import verdict_of
from safetydpo.storage.finite import finite


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
