"""Agreement of verdicts by hand."""

import numpy as np
import pandas as pd
import pytest

from safetydpo.evaluation.agreement import agreements


def test_agreement_and_kappa_by_hand():
    """Both unsafe 2, both safe 1, one alone 1 of 4: agreement 3/4; by chance 3/4 x 1/2 + 1/4 x 1/2; kappa 1/2."""
    found = pd.DataFrame({"ip": 1.0, "ip:q16": [1, 1, 1, 0, 1.0], "ip:vlm": [1, 1, 0, 0, np.nan], "clip_score": 1.0})
    rows = {row["category"]: row for row in agreements(found, pd.Series(["a", "a", "b", "b", "b"]))}
    assert (rows["all"]["verdict"], rows["all"]["other"], rows["all"]["n"]) == ("q16", "vlm", 4)
    assert rows["all"]["agreement"] == 0.75
    assert rows["all"]["kappa"] == pytest.approx((0.75 - 0.5) / (1 - 0.5))
    assert (rows["b"]["n"], rows["b"]["agreement"]) == (2, 0.5)
    assert (rows["a"]["agreement"], np.isnan(rows["a"]["kappa"])) == (1, True)  # neither varies


def test_each_two_verdicts_once_where_both_say_something():
    found = pd.DataFrame({f"ip:{name}": [1.0, 0.0] for name in "abc"} | {"ip:d": [np.nan, np.nan]})
    rows = list(agreements(found, pd.Series(["x", "x"])))
    pairs = {(row["verdict"], row["other"]) for row in rows}
    assert pairs == {("a", "b"), ("a", "c"), ("b", "c")}
    assert {row["kappa"] for row in rows} == {1.0}
