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


def paired(method, other, benchmark, metric, p, value=-0.01):
    return row(method, benchmark, metric, value) | {"other": other, "p_value": p, "test": "mcnemar"}


PAIR = ("merged-co-merge", "all-single")
TESTED = pd.DataFrame([paired(*PAIR, "test", "ip", 0.049), paired(*PAIR, "safe", "clip_score", 0.05, 0.1)])


def test_best_and_second_are_marked_among_aligned_methods_where_their_difference_is_no_noise():
    table = tables.main_table(METRICS, CONFIG, differences=TESTED)
    ip = column(table, "IP (test)")
    assert {method: cell.rank for method, cell in ip.items()} == {
        "base": 0,
        "base-reseed": 0,
        "all-single": 2,
        "merged-co-merge": 1,
    }
    assert ip["merged-co-merge"].text == "0.010 [0.000, 0.020]"
    assert {cell.rank for cell in column(table, "CLIPScore (safe)").values()} == {0}  # p is not below 0.05
    assert {cell.rank for cell in column(table, "mark right").values()} == {0}  # equals have no best
    assert "**0.010 [0.000, 0.020]**" in table.markdown()
    assert "<u>0.020 [0.010, 0.030]</u>" in table.markdown()
    assert "n: test 280, safe 280, benign 280" in table.note
    assert "Where nothing is bold, the best two cannot be told apart" in table.note


def test_without_a_paired_test_intervals_that_are_apart_mark_the_best():
    table = tables.main_table(METRICS, CONFIG)
    assert {cell.rank for cell in column(table, "IP (test)").values()} == {0}  # [0, 0.02] and [0.01, 0.03]
    clip = column(table, "CLIPScore (safe)")  # higher is better; [90.39, 90.41] and [90.49, 90.51]
    assert (clip["merged-co-merge"].rank, clip["all-single"].rank, clip["base"].rank) == (1, 2, 0)


# difference of the second from the first, its p; n of the second; whether intervals are apart -> ranks
ORDERS = {
    "shared images agree": (0.05, 0.007, 84, [1, 2]),
    "shared images say the other is better": (-0.155, 0.007, 84, [0, 0]),
    "no test, as many images": (None, None, 280, [1, 2]),
    "no test, fewer images": (None, None, 84, [0, 0]),
}


@pytest.mark.parametrize("name", ORDERS)
def test_a_rank_needs_the_order_that_is_shown(name):
    value, p, n, ranks = ORDERS[name]
    for metric, values, sign in (("ip", (0.068, 0.1), 1), ("mark_right", (0.1, 0.068), -1)):
        metrics = pd.DataFrame([row("uce", "b", metric, values[0]), row("esd-u", "b", metric, values[1], n=n)])
        tested = value and pd.DataFrame([paired("esd-u", "uce", "b", metric, p, sign * value)])
        columns = [tables.of_benchmark(metric, "b")]
        table = tables.build("t", "T", "", metrics, ["uce", "esd-u"], columns, differences=tested)
        assert [cells[1].rank for cells in table.cells] == ranks


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ([], None),
        (["fid"], " FID in the features of {}, to {}. Intervals of FID: the jackknife's."),
        (["cmmd"], " Intervals of CMMD: the jackknife's."),
        (["cmmd", "kid", "fid"], " FID and KID in the features of {}, to {}. Intervals of FID, KID, CMMD: the jackk"),
    ],
)
def test_the_foot_speaks_of_the_distances_that_are_there(metrics, said):
    rows = pd.concat([METRICS, pd.DataFrame([row("base", "safe", name, 1.0) for name in metrics])])
    note = tables.main_table(rows, CONFIG).note
    if said:
        assert said.format(CONFIG.judges.features, CONFIG.evaluate.fid_reference) in note
    assert ("jackknife" in note, "features" in note) == (bool(metrics), bool(set(metrics) - {"cmmd"}))


def test_methods_that_share_the_second_place_are_both_underlined():
    values = {"a": 0.1, "b": 0.5, "c": 0.5, "d": 0.7}
    metrics = pd.DataFrame([row(m, "test", "ip", v) for m, v in values.items()])
    columns = [tables.of_benchmark("ip", "test")]
    for p, ranks in ((0.01, [1, 2, 2, 0]), (0.3, [0, 0, 0, 0])):
        differences = pd.DataFrame([paired("a", "b", "test", "ip", p)])
        table = tables.build("t", "T", "", metrics, list(values), columns, differences=differences)
        assert [cells[1].rank for cells in table.cells] == ranks


def test_harmless_prompts_are_told_by_marks_or_else_by_clip_score():
    rows = [
        row("base", b, metric, 1.0) for b in ("benign", "overt") for metric in ("ip", "clip_score", "clip_score_change")
    ]
    plain = pd.DataFrame(rows)
    marked = pd.DataFrame([*rows, row("base", "benign", "mark_right", 1.0)])

    def labels(kind, benchmark, metrics):
        return [c.metric for c in tables.shown_columns(benchmark, kind, metrics)]

    assert labels("benign", "benign", marked) == ["mark_right"]
    assert labels("benign", "benign", plain) == ["mark_right", "clip_score", "clip_score_change"]
    assert labels("over-refusal", "overt", plain) == ["ip", "mark_right", "clip_score", "clip_score_change"]


def test_a_turned_table_has_methods_as_columns_and_keeps_ranks():
    table = tables.main_table(METRICS, CONFIG, differences=TESTED)
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
    assert column(table, "ring")["experts"] == ("0.000 [-0.010, 0.010]", 1)  # apart from [0.04, 0.06]
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


def test_merging_marks_the_chosen_scale_and_where_it_is_an_end_of_those_tried():
    facts = {"ip": [0.3, 0.01, 0.0], "n_unsafe": 42, "n_benign": 30}
    inside = pd.DataFrame({"scale": [0.5, 1.0, 2.0], "chosen": [False, True, False], **facts})
    table = tables.merging_table({"merged-mean": inside})
    assert [(c[1].text, c[1].rank) for c in table.cells] == [("0.5", 0), ("1", 1), ("2", 0)]
    assert "an end of those tried" not in table.note
    table = tables.merging_table({"a": inside, "b": inside.assign(chosen=[False, False, True])})
    assert [c[1].text for c in table.cells] == ["0.5", "1", "2", "0.5", "1", "2⊣"]
    assert "⊣: an end of those tried" in table.note


def test_tables_are_written_in_three_formats(tmp_path):
    tables.main_table(METRICS, CONFIG).write(tmp_path)
    wide = pd.read_csv(tmp_path / "main.csv").set_index("method")
    assert wide.loc["merged-co-merge", "IP (test)"] == pytest.approx(0.01)
    assert wide.loc["merged-co-merge", "IP (test) high"] == pytest.approx(0.02)
    assert pd.read_parquet(tmp_path / "main.parquet").shape == pd.read_csv(tmp_path / "main.csv").shape
