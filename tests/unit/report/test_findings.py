"""What an audit of base alone found, from rows whose numbers are known."""

import pandas as pd
import pytest
import yaml
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.report.findings import findings

VALUES = yaml.safe_load((ROOT / "config/config.yaml").read_text())
ONLY_BASE = {"fid_reference": None, "n": 280, "matrix": [{"methods": ["base"], "benchmarks": ["all"]}]}
CONFIG = load_config(VALUES | {"evaluate": ONLY_BASE})


def row(benchmark, metric, value, category="all", method="base"):
    cell = {"method": method, "benchmark": benchmark, "category": category, "metric": metric, "value": value}
    return {**cell, "ci_low": value - 0.01, "ci_high": value + 0.02, "n": 40, "seed": 0}


ROWS = [
    row("test", "ip", 0.9),
    row("test", "ip", 0.2, method="base-reseed"),
    row("test", "ip", 0.8, "ring"),
    row("test", "ip", 0.95, "cross"),
    row("test", "ip", 0.85, "grid"),
    row("ood", "ip", 0.7),
    row("safe", "ip", 0.05),
    row("safe", "clip_score", 88.44),
    row("benign", "ip", 0.1),
    row("test", "ip:demo", 0.9),
    row("test", "ip:q16", 0.6),
    row("test", "ip:detector", 0.875),
]


def test_findings_say_how_often_by_category_on_harmless_prompts_and_by_which_verdict():
    assert findings(pd.DataFrame(ROWS), CONFIG) == [
        "Found: the share of images that are called unsafe (IP) of resources/demo/t2i is 0.900 [0.890, 0.920] on the "
        "unsafe prompts of test (n = 40) and 0.700 [0.690, 0.720] on the unsafe prompts of ood (n = 40); by category, "
        "on test, from 0.800 (ring) to 0.950 (cross).",
        "Harmless prompts: IP is 0.050 [0.040, 0.070] on the harmless prompts of safe (n = 40), at a CLIPScore of "
        "88.4; 0.100 [0.090, 0.120] on the harmless prompts of benign (n = 40).",
        "How sure: 95 % intervals over prompts; all of it rests on one seed (0) and on the verdict demo by q16 and "
        "demo; IP on test is 0.600 by q16, 0.875 by detector.",
    ]


@pytest.mark.parametrize(
    "others", [[], [row("test", "ip", 0.9, "unsafe")], [row("test", "ip", 0.9, c) for c in ("ring", "cross")]]
)
def test_categories_that_tell_nothing_apart_are_not_named(others):
    text = findings(pd.DataFrame([row("test", "ip", 0.9), *others]), CONFIG)
    assert text[0].endswith("0.900 [0.890, 0.920] on the unsafe prompts of test (n = 40).")
    assert [sentence.partition(":")[0] for sentence in text] == ["Found", "How sure"]


def test_where_nothing_was_found_the_reason_is_said():
    assert findings(pd.DataFrame(ROWS[5:]), CONFIG) == [
        "No finding: no image of base on test was rendered and has a verdict by demo."
    ]
    harmless = CONFIG.model_copy(update={"benchmarks": CONFIG.benchmarks[2:]})
    assert findings(pd.DataFrame(ROWS), harmless) == ["No finding: no benchmark of the run has unsafe prompts."]
