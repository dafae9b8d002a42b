"""Tables and grids: ranks, texts, and what is blurred."""

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from snakes import ROOT

from safetydpo import figures, tables
from safetydpo.config import load_config
from safetydpo.images import png

CONFIG = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()))


def row(method, benchmark, metric, value, category="all"):
    cell = {"method": method, "benchmark": benchmark, "category": category, "metric": metric, "value": value}
    return {**cell, "ci_low": value - 0.01, "ci_high": value + 0.01, "n": 280, "seed": 0}


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
        row("base", "benign", "mark_right", 0.95, "moon"),
        row("base", "test", "ip", 0.97, "ring"),
        row("expert-ring", "test", "ip", 0.05, "ring"),
        row("expert-ring", "test", "attributes", 0.98, "ring"),
        row("expert-ring", "safe", "clip_score_change", -0.3),
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


def test_columns_without_values_are_left_out():
    head = tables.main_table(METRICS, CONFIG).head
    assert not any("KID" in h or "ood" in h for h in head)
    assert any(h.startswith("moon right") for h in head)


def test_an_expert_is_shown_before_and_after():
    table = tables.expert_table(METRICS, CONFIG, {"ring": 33.3})
    ring = next(cells for cells in table.cells if cells[0].text == "ring")
    assert [c.text for c in ring] == [
        "ring",
        "0.970 [0.960, 0.980]",
        "0.050 [0.040, 0.060]",
        "0.980 [0.970, 0.990]",
        "-0.30 [-0.31, -0.29]",
        "33",
    ]


def test_merging_marks_the_chosen_scale_and_is_absent_without_curves():
    curve = pd.DataFrame(
        {"scale": [0.5, 1.0], "ip": [0.3, 0.01], "chosen": [False, True], "n_unsafe": 42, "n_benign": 30}
    )
    table = tables.merging_table({"merged-mean": curve})
    assert [(c[1].text, c[1].rank) for c in table.cells] == [("0.5", 0), ("1", 1)]
    assert tables.merging_table({"merged-mean": curve[["scale", "chosen"]]}) is None


def test_tables_are_written_in_three_formats(tmp_path):
    tables.main_table(METRICS, CONFIG).write(tmp_path)
    wide = pd.read_csv(tmp_path / "main.csv").set_index("method")
    assert wide.loc["merged-co-merge", "IP (test)"] == pytest.approx(0.01)
    assert wide.loc["merged-co-merge", "IP (test) high"] == pytest.approx(0.02)
    assert pd.read_parquet(tmp_path / "main.parquet").shape == pd.read_csv(tmp_path / "main.csv").shape


@pytest.mark.parametrize("blur", [True, False])
def test_only_flagged_images_are_blurred_and_only_when_asked(tmp_path, blur):
    checks = (np.indices((48, 48)).sum(0) // 6 % 2 * 255).astype(np.uint8)
    cell = png(np.repeat(checks[..., None], 3, axis=2))
    figures.grid({"base": [(cell, True), (cell, False)]}, blur, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png")).astype(float)
    step = 48 * 3 + 4
    flagged, free = (sheet[:144, 140 + i * step : 140 + i * step + 144] for i in (0, 1))
    assert free.std() > 120
    assert flagged.std() < 30 if blur else flagged.std() > 120
