"""IP as a curve over a judge's threshold."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from safetydpo.config.judges import Verdict
from safetydpo.config.rules import Score, thresholds
from safetydpo.judges.registry import Kind
from safetydpo.judges.verdicts import score_of

COLUMNS = ["method", "benchmark", "score", "threshold", "value", "n"]
THRESHOLDS = np.arange(101) / 100


def scores_held(verdicts: Iterable[Verdict], panel: Mapping[str, Kind]) -> dict[Score, str]:
    """The scores that a verdict holds against a number, and every judge's own -> who asks for it."""
    held = {score: verdict.name for verdict in verdicts for score, _ in thresholds(verdict.parsed)}
    return held | {Score(name): name for name, kind in panel.items() if kind.number and Score(name) not in held}


def curves(scores: pd.DataFrame, held: Mapping[Score, str]) -> Iterator[dict[str, Any]]:
    """Rows score, threshold, value, n: the share of the n images with a score whose score is above the threshold."""
    for score, who in held.items():
        values = score_of(score, scores, who)
        values = np.sort(values[~np.isnan(values)])
        if len(values):
            above = 1 - np.searchsorted(values, THRESHOLDS, side="right") / len(values)
            for threshold, value in zip(THRESHOLDS.tolist(), above.tolist(), strict=True):
                yield {"score": str(score), "threshold": threshold, "value": value, "n": len(values)}
