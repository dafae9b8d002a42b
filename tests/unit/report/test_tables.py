"""Report: ranks and texts of tables, what is blurred, and a page of a small synthetic run."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from snakes import REDUCED, ROOT

from safetydpo.config.loading import load_config
from safetydpo.errors import SafetyDPOError
from safetydpo.report import figures, tables
from safetydpo.report.stage import MEANINGS, over_seeds, summary, write_figures, write_report
from safetydpo.storage.files import write_parquet
from safetydpo.storage.images import png

VALUES = yaml.safe_load((ROOT / "config/config.yaml").read_text())
CONFIG = load_config(VALUES)
CATEGORIES = ("ring", "cross")


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


def test_tables_of_what_was_not_measured_are_absent():
    assert tables.expert_table(METRICS[~METRICS.method.str.startswith("expert")], CONFIG, {}) is None
    benchmarks = [{"name": "safe", "kind": "safe", "source": "demo"}]
    matrix = [{"methods": ["base"], "benchmarks": ["safe"]}]
    no_unsafe = load_config(VALUES | {"benchmarks": benchmarks, "evaluate": {"n": 4, "matrix": matrix}})
    assert tables.category_table(METRICS, no_unsafe) is None


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


def checks(size):
    pixels = (np.indices((size, size)).sum(0) // (size // 8) % 2 * 255).astype(np.uint8)
    return png(np.repeat(pixels[..., None], 3, axis=2))


@pytest.mark.parametrize("blur", [True, False])
@pytest.mark.parametrize(("size", "shown"), [(48, 144), (256, 192)])
def test_only_flagged_images_are_blurred_and_only_when_asked(tmp_path, blur, size, shown):
    figures.grid({"base": [(checks(size), True), (checks(size), False)]}, blur, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png")).astype(float)[figures.LABEL :]
    flagged, free = (sheet[:shown, x : x + shown] for x in (0, shown + figures.GAP))
    assert sheet.shape[1] == 2 * shown + figures.GAP
    assert free.std() > 110
    assert flagged.std() < 30 if blur else flagged.std() > 110


def synthetic(folder, **changes):
    """A run folder with what the report reads, and its config."""
    values = VALUES | {"run": "small", "results": str(folder), "categories": [{"name": c} for c in CATEGORIES]}
    reduced = yaml.safe_load(REDUCED.read_text())
    values |= {"evaluate": reduced["evaluate"], "report": {"scenes": 2}, "tune": VALUES["tune"] | {"scales": [0.5, 1]}}
    config = load_config(values | changes)
    run, rows = folder / "small", []
    for i, (method, benchmark) in enumerate(config.cells()):
        facts = {"prompt_id": list("abcd"), "category": ["ring", "ring", "cross", "cross"]}
        images = pd.DataFrame({**facts, "prompt": [f"{benchmark} <{p}>" for p in "abcd"]})
        images["image"] = [checks(16)] * 4
        write_parquet(images, run / f"images/{method}/{benchmark}/0.parquet")
        write_parquet(pd.DataFrame({**facts, "flagged": [True] * 4}), run / f"scores/{method}/{benchmark}.parquet")
        for category in ("all", *CATEGORIES):
            rows += [row(method, benchmark, metric, 0.5 - i / 100, category, 4) for metric in ("ip", "clip_score")]
    write_parquet(pd.DataFrame(rows), run / "metrics.parquet")
    for category in CATEGORIES:
        pairs = {"concept": ["x", "y", "y"], "split": ["train", "train", "test"], "leak": [False, True, False]}
        write_parquet(pd.DataFrame({**pairs, "similarity": [0.5, 0.9, 0.95]}), run / f"prompts/{category}.parquet")
        reasons = pd.DataFrame({"reason": ["refusal", "too far", "refusal"], "similarity": [np.nan, 0.2, np.nan]})
        write_parquet(reasons.head(3 if category == "ring" else 0), run / f"rejected/{category}.parquet")
    (run / "model.json").write_text(json.dumps({"id": "tiny", "unet_parameters": 1234567}))
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return run, config


def test_a_page_has_sections_for_what_there_is(tmp_path):
    run, config = synthetic(tmp_path)
    write_report(run, config, run / "report.html")
    page = (run / "report.html").read_text()
    for there in ("<h2>Methods", "<h2>Images", "<h2>IP by category", "<h2>Experts", "1,234,567", "test &lt;a&gt;"):
        assert there in page
    for absent in ("<h2>Merging", "<h2>Co-Merge", "<h2>Training", "<script", 'src="http', MEANINGS["fid"][1]):
        assert absent not in page
    assert page.index("test &lt;a&gt;") < page.index("test &lt;c&gt;")  # one prompt of each category
    assert "test &lt;b&gt;" not in page
    assert {p.stem for p in (run / "tables").glob("*.csv")} == {"main", "datasets", "categories", "experts", "prompts"}
    assert max(map(len, summary(run).splitlines()[:-1])) <= 100


def test_a_page_has_curves_of_tuning_training_and_co_activation(tmp_path):
    run, config = synthetic(tmp_path, merge={"strategies": ["co-merge"]})
    curve = {"scale": [0.5, 1.0], "ip": [0.3, 0.0], "benign_clip_score": [80.0, 79.0], "chosen": [False, True]}
    for method in ("all-single", "merged-co-merge"):
        write_parquet(pd.DataFrame({**curve, "n_unsafe": 3, "n_benign": 3}), run / f"tuning/{method}.parquet")
    log = {"step": range(5), "preference_loss": 0.6, "implicit_accuracy": 0.5, "winner_error": 0.2, "pairs_per_s": 9.0}
    log |= {"loser_error": 0.3, "reference_loser_error": 0.2, "grad_norm": 1.5, "lr": 1e-3}
    for name in (*CATEGORIES, "all-single"):
        write_parquet(pd.DataFrame({**log, "reference_winner_error": 0.2}), run / f"experts/{name}/training.parquet")
    wins = [
        {"module": f"down_blocks.{m}.to_q", "unit": u, "expert": e, "wins": u + len(e), "inputs": 9}
        for m in range(2)
        for e in CATEGORIES
        for u in range(3)
    ]
    write_parquet(pd.DataFrame(wins), run / "merged/co-merge/coactivation.parquet")
    write_report(run, config, run / "report.html")
    page = (run / "report.html").read_text()
    for there in ("<h2>Merging", "<h2>Co-Merge", "<h2>Training", "tuning prompts (n = 3 unsafe, 3 benign)", "down 1"):
        assert there in page
    without = config.model_copy(update={"merge": config.merge.model_copy(update={"strategies": []})})
    drawn = (run / "figures/training.svg").read_text()
    for there in ("implicit accuracy", "alarm: winner", "loser", "gradient norm", "learning rate"):
        assert there in drawn
    assert "coactivation" not in write_figures(run, without)  # the file is an earlier config's


def test_prompt_pairs_are_counted_by_category_and_reason(tmp_path):
    run, config = synthetic(tmp_path)
    write_report(run, config, run / "report.html")
    table = pd.read_parquet(run / "tables/prompts.parquet").set_index("category")
    assert table.loc["ring"].to_dict() == {
        "concepts": 2, "pairs": 3, "held_out": 1, "in_test_file": 1, "refusal": 2, "too far": 1,
    }  # fmt: skip
    assert table.loc["cross", ["refusal", "too far"]].to_list() == [0, 0]
    assert "| all | 4 | 6 | 2 | 2 | 2 | 1 |" in (run / "tables/prompts.md").read_text()
    assert not (run / "figures/similarity.svg").exists()


def test_the_distribution_of_similarity_is_drawn_where_it_was_measured(tmp_path):
    run, config = synthetic(tmp_path, prompts=VALUES["prompts"] | {"min_similarity": 0.3})
    write_report(run, config, run / "report.html")
    drawn = (run / "figures/similarity.svg").read_text()
    for there in ("ring", "cross", "min_similarity", "cosine of the text embeddings"):
        assert there in drawn
    assert "How alike the prompts of a pair are" in (run / "report.html").read_text()


def test_runs_of_several_seeds_are_one_table_of_means_and_ranges(tmp_path):
    runs = [synthetic(tmp_path / str(seed))[0] for seed in (0, 1)]
    for seed, run in enumerate(runs):
        metrics = pd.read_parquet(run / "metrics.parquet").assign(seed=seed)
        metrics.loc[(metrics.method == "base") & (metrics.metric == "ip"), "value"] = 0.9 + 0.1 * seed
        metrics.to_parquet(run / "metrics.parquet")
    text = over_seeds(runs)
    assert "| IP (test)\u00a0↓ | 0.950 [0.900, 1.000] |" in text
    assert "Mean over the seeds 0, 1 [lowest, highest]; n is of one seed." in text
    assert "**IP by category (test)**" in text
    with pytest.raises(SafetyDPOError, match="2 runs have the seeds 0: give each a seed of its own"):
        over_seeds([runs[0], runs[0]])
    with pytest.raises(SafetyDPOError, match=r"nothing has no metrics\.parquet"):
        over_seeds([tmp_path / "nothing"])
