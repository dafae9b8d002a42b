"""Tables: which columns and rows they have, ranks, texts, and their files."""

import pandas as pd
import pytest
import yaml
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.report import tables

VALUES = yaml.safe_load((ROOT / "config/config.yaml").read_text())
CONFIG = load_config(VALUES)


def row(method, benchmark, metric, value, category="all", n=280):
    cell = {"method": method, "benchmark": benchmark, "category": category, "metric": metric, "value": value}
    return {**cell, "ci_low": value - 0.01, "ci_high": value + 0.01, "n": n, "seed": 0}


METRICS = pd.DataFrame(
    [
        row("base", "test", "ip", 0.99),
        row("base-reseed", "test", "ip", 0.98),
        row("all-single", "test", "ip", 0.02),
        row("merged-co-merge", "test", "ip", 0.01),
        row("base", "safe", "clip_score", 90.6),
        row("all-single", "safe", "clip_score", 90.4),
        row("merged-co-merge", "safe", "clip_score", 90.5),
        row("base", "benign", "mark_right", 0.9),
        row("all-single", "benign", "mark_right", 0.7),
        row("merged-co-merge", "benign", "mark_right", 0.7),
        row("base", "benign", "mark_right", 0.95, "moon", 93),
        row("base", "benign", "mark_right", 0.93, "leaf", 94),
        row("base", "test", "ip", 0.97, "ring", 40),
        row("merged-co-merge", "test", "ip", 0.05, "ring", 40),
        row("expert-ring", "test", "ip", 0.0, "ring", 40),
        row("expert-ring", "test", "ip", 0.5, "cross", 40),
        row("expert-ring", "test", "attributes", 0.98, "ring", 40),
        row("expert-ring", "safe", "clip_score_change", -0.3, n=84),
    ]
)


def column(table, label):
    i = next(i for i, head in enumerate(table.head) if head.startswith(label))
    return {cells[0].text: cells[i] for cells in table.cells}


def test_best_and_second_are_ranked_among_aligned_methods():
    table = tables.main_table(METRICS, CONFIG)
    ip = column(table, "IP (test)")
    assert {method: cell.rank for method, cell in ip.items()} == {
        "base": 0,
        "base-reseed": 0,
        "all-single": 2,
        "merged-co-merge": 1,
    }
    assert ip["merged-co-merge"].text == "0.010 [0.000, 0.020]"
    assert column(table, "CLIPScore (safe)")["merged-co-merge"].rank == 1  # higher is better
    right = column(table, "mark right")
    assert right["all-single"].rank == right["merged-co-merge"].rank == 1  # equals share a rank
    assert "**0.010 [0.000, 0.020]**" in table.markdown()
    assert "<u>0.020 [0.010, 0.030]</u>" in table.markdown()
    assert "n: test 280, safe 280, benign 280" in table.note


def test_a_turned_table_has_methods_as_columns_and_keeps_ranks():
    table = tables.main_table(METRICS, CONFIG)
    turned = table.turned()
    assert turned.head == ["", "base", "base-reseed", "all-single", "merged-co-merge"]
    assert [line[0].text for line in turned.cells] == table.head[1:]
    assert turned.cells[0][-1] == ("0.010 [0.000, 0.020]", 1)
    assert turned.turned().cells == table.cells


def test_columns_are_those_measured_and_retained_kinds_are_told_apart():
    plain = tables.main_table(METRICS, CONFIG).head
    assert not any("KID" in h or "ood" in h for h in plain)
    assert [h.split(" right")[0] for h in plain[-2:]] == ["leaf", "moon"]
    told = tables.main_table(METRICS, CONFIG, {"leaf"}).head
    assert told[-2].startswith("leaf right, retained")
    assert told[-2].endswith("(n\u00a0=\u00a094)")
    assert told[-1].startswith("moon right, unseen")


def test_benchmarks_are_compared_on_the_unaligned_model():
    table = tables.dataset_table(METRICS, CONFIG)
    assert table.head == ["benchmark", "kind", "images", "IP", "CLIPScore"]
    assert [[cell.text for cell in row] for row in table.cells] == [
        ["test", "unsafe", "280", "0.990 [0.980, 1.000]", "–"],
        ["safe", "safe", "280", "–", "90.6 [90.6, 90.6]"],
    ]


def test_experts_share_a_row_each_on_its_own_category():
    table = tables.category_table(METRICS, CONFIG)
    assert [cells[0].text for cells in table.cells] == ["base", "experts", "merged-co-merge"]
    assert [h.split("\u00a0")[0] for h in table.head] == ["method", "ring"]  # nobody's own is not shown
    assert column(table, "ring")["experts"] == ("0.000 [-0.010, 0.010]", 1)
    assert "n: " not in table.note


def test_an_expert_is_shown_before_and_after():
    log = pd.DataFrame({"pairs_per_s": [8.0, 16.0, 16.0]})
    table = tables.expert_table(METRICS, CONFIG, {"ring": log})
    ring = [c.text for c in table.cells[0]]
    assert ring[:3] == ["ring", "0.970 [0.960, 0.980]", "0.000 [-0.010, 0.010]"]
    seconds = CONFIG.train.batch_size * (1 / 8 + 1 / 16 + 1 / 16)
    assert ring[3:] == ["0.980 [0.970, 0.990]", "-0.30 [-0.31, -0.29]", "16", f"{seconds:.0f}"]
    assert table.data.seconds.tolist() == [seconds]
    assert "n: safe 84" in table.note
    # four processes do as many pairs each: at the same pairs a second, four times the seconds
    several = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"gpus": 4})})
    assert tables.expert_table(METRICS, several, {"ring": log}).data.seconds.tolist() == [4 * seconds]


def test_merging_marks_the_chosen_scale():
    curve = pd.DataFrame(
        {"scale": [0.5, 1.0], "ip": [0.3, 0.01], "chosen": [False, True], "n_unsafe": 42, "n_benign": 30}
    )
    table = tables.merging_table({"merged-mean": curve})
    assert [(c[1].text, c[1].rank) for c in table.cells] == [("0.5", 0), ("1", 1)]


def test_tables_are_written_in_three_formats(tmp_path):
    tables.main_table(METRICS, CONFIG).write(tmp_path)
    wide = pd.read_csv(tmp_path / "main.csv").set_index("method")
    assert wide.loc["merged-co-merge", "IP (test)"] == pytest.approx(0.01)
    assert wide.loc["merged-co-merge", "IP (test) high"] == pytest.approx(0.02)
    assert pd.read_parquet(tmp_path / "main.parquet").shape == pd.read_csv(tmp_path / "main.csv").shape
