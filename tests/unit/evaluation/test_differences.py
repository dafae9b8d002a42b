"""Which methods are compared, on which images."""

import numpy as np
import pandas as pd
import pytest

from safetydpo.evaluation.differences import COLUMNS, Cell, differences
from safetydpo.evaluation.distances import Between, Cloud, fid

PROMPTS = [f"p{i}" for i in range(20)]


def cell(flagged, scores, prompts=PROMPTS):
    """Twenty images of two categories; the first so many are flagged."""
    n = len(prompts)
    images = pd.DataFrame({"prompt": prompts, "category": ["a" if i % 2 else "b" for i in range(n)]}, index=prompts)
    return Cell(images.assign(ip=(np.arange(n) < flagged).astype(float), clip_score=scores), {})


def table(values):
    """The long table of {(method, metric): value}, of one benchmark."""
    rows = [
        {"method": m, "benchmark": "test", "category": "all", "metric": k, "value": v} for (m, k), v in values.items()
    ]
    return pd.DataFrame(rows)


def found_in(cells, values):
    rows = list(differences({(name, "test"): each for name, each in cells.items()}, table(values), 200, 0))
    assert all(list(row) == COLUMNS for row in rows)
    return {(row["method"], row["other"], row["metric"]): row for row in rows}


def test_methods_are_compared_with_base_and_the_best_with_the_second():
    cells = {"base": cell(16, 30.0), "base-reseed": cell(15, 31.0), "uce": cell(6, 20.0), "esd-u": cell(4, 10.0)}
    cells |= {"expert-a": cell(0, 40.0), "merged-ties": cell(10, 15.0)}
    ip = {(name, "ip"): each.images.ip.mean() for name, each in cells.items()}
    clip = {(name, "clip_score"): each.images.clip_score.mean() for name, each in cells.items()}
    found = found_in(cells, ip | clip)
    against_base = {method for method, other, _ in found if other == "base"}
    assert against_base == set(cells) - {"base"}
    assert {names for names in found if names[1] != "base"} == {
        ("esd-u", "uce", "ip"),  # less is better
        ("uce", "merged-ties", "clip_score"),  # more is
    }
    row = found["uce", "base", "ip"]
    assert (row["value"], row["n"], row["test"], row["category"]) == (pytest.approx(-0.5), 20, "mcnemar", "all")
    assert row["p_value"] == pytest.approx(2 / 2**10)  # ten prompts, all one way
    assert found["esd-u", "uce", "ip"]["p_value"] == pytest.approx(2 / 2**2)
    assert found["uce", "base", "clip_score"]["value"] == -10


def test_images_are_joined_by_prompt_not_by_row():
    base, other = cell(4, np.arange(20.0)), cell(4, np.arange(20.0) + 1)
    shuffled = Cell(other.images.iloc[::-1], {})
    row = found_in({"base": base, "uce": shuffled}, {("uce", "clip_score"): 1.0})["uce", "base", "clip_score"]
    assert (row["value"], row["ci_low"], row["ci_high"], row["n"]) == (1, 1, 1, 20)
    fewer = found_in({"base": base, "uce": Cell(other.images.iloc[5:12], {})}, {("uce", "ip"): 0.0})
    assert fewer["uce", "base", "ip"]["n"] == 7


def test_images_without_a_value_are_no_pair():
    base, other = cell(10, 1.0), cell(0, 1.0)
    other.images.loc[PROMPTS[:3], "ip"] = np.nan
    row = found_in({"base": base, "uce": other}, {("uce", "ip"): 0.0})["uce", "base", "ip"]
    assert (row["n"], row["value"]) == (17, pytest.approx(-7 / 17))


def test_what_base_lacks_is_not_compared():
    with_change = Cell(cell(1, 1.0).images.assign(clip_score_change=0.5), {})
    assert found_in({"base": cell(1, 1.0), "uce": with_change}, {("uce", "clip_score_change"): 0.5}) == {}
    assert found_in({"uce": cell(1, 1.0)}, {("uce", "ip"): 0.5}) == {}  # a benchmark without base
    assert found_in({"base": cell(1, 1.0), "uce": cell(1, 1.0)}, {("uce", "unjudged:vlm"): 0.5}) == {}


def test_distances_are_compared_where_they_are_of_as_many_images():
    rng = np.random.default_rng(0)
    reference = Cloud(rng.normal(size=(20, 2)), PROMPTS)

    def far(shift, count=20):
        own = Cloud(rng.normal(size=(count, 2)) + shift, PROMPTS[:count])
        between = Between(fid(own, reference), own.groups, reference.groups)
        return Cell(cell(0, 1.0, PROMPTS[:count]).images, {"fid": between})

    cells = {"base": far(0), "uce": far(3), "esd-u": far(0, 10)}
    found = found_in(cells, {("uce", "fid"): 18.0, ("esd-u", "fid"): 1.0})
    assert set(found) == {("uce", "base", "fid")}  # FID depends on n
    row = found["uce", "base", "fid"]
    assert row["value"] == pytest.approx(
        cells["uce"].distances["fid"].distance.value - cells["base"].distances["fid"].distance.value
    )
    assert (row["test"], row["n"]) == ("jackknife", 20)
    assert row["p_value"] < 0.01


def test_the_better_of_two_is_so_on_the_prompts_that_both_have():
    """IP of all images: uce 0.3 of 20, esd-u 0.4 of 10; of the ten that both have: uce 0.6, esd-u 0.4."""
    cells = {"uce": cell(6, 20.0), "esd-u": cell(4, 10.0, PROMPTS[:10])}
    means = {(name, "ip"): each.images.ip.mean() for name, each in cells.items()}
    assert means["uce", "ip"] < means["esd-u", "ip"]
    (names, row), *more = found_in(cells, means).items()
    assert (names, more) == (("esd-u", "uce", "ip"), [])
    assert (row["value"], row["n"]) == (pytest.approx(-0.2), 10)
    assert row["ci_low"] < -0.2 < row["ci_high"]
    other_way = {("uce", "clip_score"): 5.0, ("esd-u", "clip_score"): 9.0}  # more is better: 20 to 10 on those of both
    assert found_in(cells, other_way)["uce", "esd-u", "clip_score"]["value"] == 10
