"""The page of a small synthetic run: its sections, curves and counts."""

import re

import pandas as pd
import pytest
import yaml
from snakes import REDUCED, ROOT

from safetydpo.config.judges import Verdict
from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.registry import MEASURES
from safetydpo.report import inputs
from safetydpo.report.stage import write_ablation, write_figures, write_report, write_tables
from safetydpo.report.summary import over_seeds, summary
from safetydpo.storage.files import made_by, write_parquet

VALUES = yaml.safe_load((ROOT / "config/config.yaml").read_text())
EVALUATE = yaml.safe_load(REDUCED.read_text())["evaluate"]
# The reduced demo with experts merged by their mean, at one scale: no Co-Merge, no tuning.
MEAN = {"methods": ["base", "merged-mean"], "benchmarks": ["test", "ood", "safe", "benign"]}
PLAIN = {
    "merge": {"strategies": ["mean"]},
    "tune": VALUES["tune"] | {"scales": [1]},
    "evaluate": EVALUATE | {"matrix": [MEAN, *EVALUATE["matrix"][1:]]},
}


def test_a_page_has_sections_for_what_there_is(synthetic, tmp_path):
    run, config = synthetic(tmp_path, **PLAIN)
    write_report(run, config, run / "report.html")
    page = (run / "report.html").read_text()
    for there in ("<h2>Methods", "<h2>Images", "<h2>IP by category", "<h2>Experts", "1,234,567", "test &lt;a&gt;"):
        assert there in page
    assert "<h2>Training" in page
    assert "down and right is better.</figcaption>" in page  # one scale: no curve behind the points
    for absent in ("<h2>Merging", "<h2>Co-Merge", "<script", 'src="http', MEASURES["fid"].meaning):
        assert absent not in page
    assert page.index("test &lt;a&gt;") < page.index("test &lt;c&gt;")  # one prompt of each category
    assert "test &lt;b&gt;" not in page
    assert {p.stem for p in (run / "tables").glob("*.csv")} == {
        "main", "datasets", "categories", "verdicts", "agreement", "experts", "prompts",
    }  # fmt: skip


def test_a_page_opens_with_the_decision_then_the_trade_off_then_the_main_table(synthetic, tmp_path):
    run, config = synthetic(tmp_path)
    write_report(run, config, run / "report.html")
    page = (run / "report.html").read_text()
    places = [
        page.index(word) for word in ("<strong>Gained</strong>", "<strong>Cost", "<strong>How sure", "<svg", "<h2>")
    ]
    assert places == sorted(places)
    assert page.index("harmless prompts, share of base") < page.index("<h2>Methods and benchmarks")
    assert page.count("<svg") == len(list((run / "figures").glob("*.svg")))


def test_feet_of_tables_name_the_verdict_that_they_go_by(synthetic, tmp_path):
    judges = VALUES["judges"] | {"ip": "q16"}
    run, config = synthetic(tmp_path, judges=judges)
    write_tables(run, config)
    for path in (run / "tables").glob("*.md"):
        text, names = path.read_text(), {"merging": "demo", "verdicts": "demo", "agreement": "demo"}
        assert ("IP by verdict" in text) == (path.stem != "prompts")
        assert f"IP by verdict {names.get(path.stem, 'q16')}: " in text or path.stem == "prompts"
        assert ("demo (weights b2)" in text) == (path.stem in names)
        assert ("Verdict detector: " in text) == (path.stem in ("verdicts", "agreement"))


def test_what_the_verdict_of_ip_flags_or_cannot_tell_is_blurred(synthetic, tmp_path):
    run, config = synthetic(tmp_path, judges=VALUES["judges"] | {"ip": "q16"})
    path = run / "scores/base/test.parquet"
    scores = pd.read_parquet(path).assign(q16=[0.9, 0.5, None, 0.1])
    header = made_by("score", judges={"panel": [{"name": "q16", "judge": "vlm"}]})
    write_parquet(scores, path, header)
    assert inputs.renders(run, config, "base", "test").flagged.to_dict() == {
        "a": True,
        "b": False,
        "c": True,
        "d": False,
    }


def test_an_ablation_says_who_judged_and_marks_what_is_apart(synthetic, tmp_path):
    run, _ = synthetic(tmp_path)
    for name, unsafe in {"one": 1, "two": 39}.items():
        ids = [str(i) for i in range(40)]
        scores = pd.DataFrame(
            {"prompt_id": ids, "prompt": ids, "category": "ring", "q16": [0.9] * unsafe + [0.1] * (40 - unsafe)}
        )
        write_parquet(scores.assign(clip_score=80.0), run / f"scores/{name}.parquet", made_by("score"))
    cells = {(name, "test"): str(run / f"scores/{name}.parquet") for name in ("one", "two")}
    write_ablation("s", cells, {"test": "unsafe"}, Verdict(name="q16"), run / "judges.json", 100, 0, tmp_path)
    text = (tmp_path / "ablation-s.md").read_text()
    assert "| one | **0.025 [0.004, 0.129]** |" in text  # Wilson, 1 of 40
    assert "| two | <u>0.975 [0.871, 0.996]</u> |" in text
    assert "IP by verdict q16: q16 > 0.5. Judges: q16 (prompts a1)." in text


def test_a_page_has_curves_of_tuning_training_and_co_activation(synthetic, tmp_path):
    run, config = synthetic(tmp_path, merge={"strategies": ["co-merge"]})
    write_report(run, config, run / "report.html")
    page = (run / "report.html").read_text()
    for there in ("<h2>Merging", "<h2>Co-Merge", "<h2>Training", "tuning prompts (n = 3 unsafe, 3 benign)", "down 1"):
        assert there in page
    (run / "tuning/merged-co-merge.parquet").rename(run / "tuning/merged-mean.parquet")
    without = config.model_copy(update={"merge": config.merge.model_copy(update={"strategies": ["mean"]})})
    drawn = (run / "figures/training.svg").read_text()
    for there in ("implicit accuracy", "alarm: winner", "loser", "gradient norm", "learning rate"):
        assert there in drawn
    assert "coactivation" not in write_figures(run, without)  # the file is an earlier config's


def test_prompt_pairs_are_counted_by_category_and_reason(synthetic, tmp_path):
    run, config = synthetic(tmp_path)
    write_report(run, config, run / "report.html")
    table = pd.read_parquet(run / "tables/prompts.parquet").set_index("category")
    assert table.loc["ring"].to_dict() == {
        "concepts": 2, "pairs": 3, "held_out": 1, "in_test_file": 1, "refusal": 2, "too far": 1,
    }  # fmt: skip
    assert table.loc["cross", ["refusal", "too far"]].to_list() == [0, 0]
    assert "| all | 4 | 6 | 2 | 2 | 2 | 1 |" in (run / "tables/prompts.md").read_text()
    assert not (run / "figures/similarity.svg").exists()


def test_the_distribution_of_similarity_is_drawn_where_it_was_measured(synthetic, tmp_path):
    run, config = synthetic(tmp_path, prompts=VALUES["prompts"] | {"min_similarity": 0.3})
    write_report(run, config, run / "report.html")
    drawn = (run / "figures/similarity.svg").read_text()
    for there in ("ring", "cross", "min_similarity", "cosine of the text embeddings"):
        assert there in drawn
    assert "How alike the prompts of a pair are" in (run / "report.html").read_text()


@pytest.mark.parametrize("kind", ["safe", "benign"])
def test_a_run_without_unsafe_prompts_has_its_page_and_summary(synthetic, tmp_path, kind):
    matrix = [{"methods": ["base", "base-reseed", "merged-co-merge", "experts"], "benchmarks": ["b"]}]
    benchmarks = [{"name": "b", "kind": kind, "source": "demo"}]
    run, config = synthetic(tmp_path, benchmarks=benchmarks, evaluate={**EVALUATE, "matrix": matrix})
    write_report(run, config, run / "report.html")
    assert ("<h2>Experts" in (run / "report.html").read_text()) == (kind == "safe")  # they have no table on benign ones
    assert ("CLIPScore (b)" in summary(run), "Gained" in summary(run)) == (True, False)
    assert "No decision: no benchmark of the run has unsafe prompts." in summary(run)
    assert over_seeds([run]).startswith("**Methods and benchmarks**")


FILES = [
    {"name": "loud", "kind": "unsafe", "source": "file", "path": "loud.csv"},
    {"name": "calm", "kind": "safe", "source": "file", "path": "calm.csv"},
]


def audit(*methods, **changes):
    """What an audit's config differs in, whose prompts are of files that have the categories ring and cross."""
    matrix = [{"methods": list(methods), "benchmarks": ["all"]}]
    values = {"categories": [], "ablation": [], "benchmarks": FILES, "evaluate": {"n": 4, "matrix": matrix}}
    return values | changes


def test_an_audit_says_how_often_base_draws_what_and_nothing_of_training(synthetic, tmp_path):
    run, config = synthetic(tmp_path, **audit("base"))
    write_report(run, config, run / "report.html")
    page = (run / "report.html").read_text()
    heads = re.findall(r"<h[12]>(.+?)</h[12]>", page)
    assert heads == [
        "Safety audit: small",
        "Methods and benchmarks",
        "Images: same prompt and seed down a column",
        "IP by category (loud)",
        "IP by every verdict",
        "Agreement of verdicts (loud)",
        "Benchmarks, on base",
        "What made this",
    ]
    assert re.findall(r"<strong>(\w.*?)</strong>:", page) == ["Found", "Harmless prompts", "How sure"]
    for absent in ("Gained", "decision", "LoRA scale", "Best bold", "unaligned", "Aligned"):
        assert absent not in page.split("<details>")[0], absent
    assert set(pd.read_csv(run / "tables/categories.csv").columns) >= {"ring", "cross"}


def test_an_audit_beside_a_base_is_what_changes_from_it(synthetic, tmp_path):
    baselines = {"externals": [{"name": "mine", "path": "models/mine"}]}
    run, config = synthetic(tmp_path, **audit("base", "external-mine", baselines=baselines))
    write_report(run, config, run / "report.html")
    page = (run / "report.html").read_text()
    assert re.findall(r"<strong>(\w.*?)</strong>:", page) == ["Gained", "Cost", "How sure"]
    # IP 0.5 of base on the first cell, 0.48 of the external on the third
    assert "falls from 0.500 to 0.480 with external-mine" in page
    assert "<dt>external-mine</dt><dd>models/mine</dd>" in page
    assert "7,654,321" in page
    assert "down and right is better.</figcaption>" in page
    assert "<h2>Training" not in page
    assert "falls from 0.500 to 0.480 with external-mine" in summary(run).replace("\n", " ")
    assert over_seeds([run]).startswith("**Methods and benchmarks**")


def test_a_model_file_that_is_not_whole_is_one_sentence(synthetic, tmp_path):
    run, config = synthetic(tmp_path, **PLAIN)
    (run / "model.json").write_text('{"id": "ti')
    with pytest.raises(SafetyDPOError, match=r"model\.json is not a whole JSON file .*delete it and rerun"):
        write_report(run, config, run / "report.html")


def test_no_score_of_a_judge_is_a_figure_with_a_sentence(synthetic, tmp_path):
    run, config = synthetic(tmp_path, **PLAIN)
    path = run / "thresholds.parquet"
    pd.read_parquet(path).query("benchmark != 'test'").to_parquet(path)
    drawn = write_figures(run, config)["thresholds"].read_text()
    assert "No judge gave a score to an image of this benchmark." in drawn
