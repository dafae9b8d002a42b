"""Feet of tables, the table of verdicts and that of their agreement."""

import numpy as np
import pandas as pd
import yaml
from snakes import ROOT

from safetydpo.config.judges import Verdict
from safetydpo.config.loading import load_config
from safetydpo.judges.registry import NUDENET
from safetydpo.report.judge_tables import agreement_table, foot, verdict_table

CONFIG = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
JUDGES = {
    "q16": {"labels": [], "clip": "openai/clip", "prompts": "ae63"},
    "nudenet": {"labels": list(NUDENET), "version": "3.4.2", "weights": "77f0"},
}
Q16, ESD = Verdict(name="q16-0.9"), Verdict(name="nudenet-esd")
NOTHING = pd.DataFrame({"method": [], "benchmark": [], "category": [], "metric": [], "value": [], "n": []})


def row(method, benchmark, metric, value, n=280):
    cell = {"method": method, "benchmark": benchmark, "category": "all", "metric": metric, "value": value}
    return {**cell, "ci_low": value - 0.01, "ci_high": value + 0.01, "n": n, "seed": 0}


def test_a_foot_says_rule_threshold_judge_version_and_hash():
    assert foot([Q16], JUDGES, NOTHING) == (
        "IP by verdict q16-0.9: q16 > 0.9. Judges: q16 (clip openai/clip, prompts ae63)."
    )


def test_a_foot_names_the_classes_behind_a_star():
    said = foot([Q16, ESD], JUDGES, NOTHING)
    assert "Verdict nudenet-esd: nudenet[*_EXPOSED] > 0." in said
    classes = said.partition("nudenet[*_EXPOSED] is ")[2].partition(".")[0].split(", ")
    assert classes == [name for name in NUDENET if name.endswith("_EXPOSED")]
    assert said.endswith("Judges: q16 (clip openai/clip, prompts ae63), nudenet (version 3.4.2, weights 77f0).")


def test_a_foot_counts_the_images_without_a_verdict():
    rows = [row("base", "test", "unjudged:q16-0.9", 0.01, 300), row("uce", "test", "unjudged:q16-0.9", 0.05, 100)]
    rows += [row("uce", "safe", "unjudged:q16-0.9", 0.5), rows[0] | {"category": "ring"}]
    cells = [("base", "test", "all"), ("uce", "test", "all")]
    said = foot([Q16], JUDGES, pd.DataFrame(rows), cells)  # 3 of 300 and 5 of 100; the rest is not in the table
    assert said.endswith("Without a verdict by q16-0.9, and not counted: 8 images, most of uce on test, 5 of 100.")
    assert "Without" not in foot([ESD], JUDGES, pd.DataFrame(rows), cells)
    assert "Without" not in foot([Q16], JUDGES, pd.DataFrame(rows))


def test_every_verdict_has_a_column_on_every_unsafe_benchmark():
    rows = [row("base", "test", "ip:demo", 0.9), row("base", "test", "ip:q16", 0.8), row("base", "ood", "ip:q16", 0.7)]
    rows += [row("base", "safe", "ip:q16", 0.1), row("uce", "test", "ip:q16", 0.5), row("esd-u", "test", "ip:q16", 0.6)]
    tested = pd.DataFrame([rows[4] | {"other": "esd-u", "value": -0.1, "p_value": 0.01, "test": "mcnemar"}])
    table = verdict_table(pd.DataFrame(rows), CONFIG, tested)
    assert [head.split("\u00a0")[0] for head in table.head] == ["method", "demo (test)", "q16 (test)", "q16 (ood)"]
    assert [(cells[0].text, *cells[2]) for cells in table.cells] == [
        ("base", "0.800 [0.790, 0.810]", 0),
        ("esd-u", "0.600 [0.590, 0.610]", 2),
        ("uce", "0.500 [0.490, 0.510]", 1),
    ]


def test_agreement_is_a_line_a_pair_and_no_kappa_is_said():
    def agreed(method, category, pair, agreement, kappa, benchmark="test"):
        names = {"method": method, "benchmark": benchmark, "category": category, "verdict": pair[0], "other": pair[1]}
        return {**names, "n": 280, "agreement": agreement, "kappa": kappa}

    one, two = ("demo", "q16"), ("demo", "detector")
    rows = [
        agreed("base", "all", one, 1, np.nan),
        agreed("uce", "all", one, 0.96, 0.913),
        agreed("uce", "all", two, 0.9, 0),
    ]
    rows += [agreed("uce", "ring", one, 0.5, 0.1), agreed("uce", "all", one, 0.2, 0.1, "ood")]
    table = agreement_table(pd.DataFrame(rows), CONFIG)
    assert table.head == ["verdicts", "base", "uce"]
    assert [[cell.text for cell in cells] for cells in table.cells] == [
        ["demo, q16", "1.000 [kappa –]", "0.960 [kappa 0.91]"],
        ["demo, detector", "–", "0.900 [kappa 0.00]"],
    ]
    assert "kappa is not defined. n = 280." in table.note
    assert len(table.data) == 5  # by category and on other benchmarks, in the csv


def test_agreement_is_of_as_many_images_as_were_judged():
    names = {"benchmark": "test", "category": "all", "verdict": "demo", "other": "q16", "agreement": 1, "kappa": 1.0}
    rows = pd.DataFrame([names | {"method": "base", "n": 280}, names | {"method": "uce", "n": 84}])
    assert "kappa is not defined. n = 84–280." in agreement_table(rows, CONFIG).note
    assert "kappa is not defined. None was judged." in agreement_table(rows.head(0), CONFIG).note
