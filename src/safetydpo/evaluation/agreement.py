"""How far verdicts agree on the same images."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.inter_rater import cohens_kappa

from safetydpo.evaluation.metrics import parts_of

COLUMNS = ["method", "benchmark", "category", "verdict", "other", "n", "agreement", "kappa"]


def agreements(found: pd.DataFrame, categories: pd.Series) -> Iterator[dict[str, Any]]:
    """Rows category, verdict, other, n, agreement (share of images), kappa (Cohen's) of each two verdicts.

    found: `ip:<verdict>` of each image. Images without one of the two verdicts are left out. kappa is agreement beyond
    chance; it is NaN where one of the two says the same of all images, whose agreement is all chance.
    """
    verdicts = [name for name in map(str, found) if name.startswith("ip:")]
    parts = parts_of(categories)
    for name, other in combinations(verdicts, 2):
        one, two = found[name].to_numpy(), found[other].to_numpy()
        both = ~np.isnan(one) & ~np.isnan(two)
        for category, part in parts.items():
            a, b = one[part & both], two[part & both]
            if len(a):
                names = {"category": category, "verdict": name.removeprefix("ip:"), "other": other.removeprefix("ip:")}
                table = np.histogram2d(a, b, bins=2, range=[[0, 1], [0, 1]])[0]
                varies = np.ptp(a) and np.ptp(b)
                kappa: Any = cohens_kappa(table, return_results=False) if varies else np.nan
                yield names | {"n": len(a), "agreement": float((a == b).mean()), "kappa": float(kappa)}
