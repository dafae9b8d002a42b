"""Figures: what tells methods apart."""

import re

import pandas as pd

from safetydpo.report import figures

METHODS = ["base", "all-single", *(f"m{i}" for i in range(8))]


def strokes(path):
    """Colour and dashes of every line of the width of methods' lines."""
    svg = path.read_text()
    return re.findall(
        r'style="fill: none; (?:stroke-dasharray: ([\d., ]+); .*?)?stroke: (#\w+); stroke-width: 1.3', svg
    )


def test_lines_of_more_methods_than_colours_differ(tmp_path):
    shares = [
        {"method": m, "score": "q16", "threshold": t, "value": 0.5 - i / 100}
        for i, m in enumerate(METHODS)
        for t in (0.0, 1.0)
    ]
    figures.thresholds(pd.DataFrame(shares), METHODS, {}, tmp_path / "t.svg")
    found = strokes(tmp_path / "t.svg")
    assert len(set(found)) == len(METHODS)
    assert "#000000" not in {colour for _, colour in found}  # of the recommended method


def test_bars_of_more_methods_than_colours_differ(tmp_path):
    rows = [
        {"method": m, "benchmark": "b", "category": "ring", "metric": "ip", "value": 0.5, "ci_low": 0.4, "ci_high": 0.6}
        for m in METHODS
    ]
    for count, hatched in ((8, 0), (10, 2)):  # two of their own, six colours, two colours again
        figures.categories(pd.DataFrame(rows), "b", ["ring"], METHODS[:count], tmp_path / "c.svg")
        fills = re.findall(r"fill: url\(#(\w+)\)", (tmp_path / "c.svg").read_text())
        assert len(set(fills)) == hatched
