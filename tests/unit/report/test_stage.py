"""The page of a small synthetic run: its sections, curves and counts."""

import pandas as pd
import pytest
import yaml
from snakes import REDUCED, ROOT

from safetydpo.errors import SafetyDPOError
from safetydpo.report.stage import MEANINGS, write_figures, write_report
from safetydpo.report.summary import over_seeds, summary

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
    for absent in ("<h2>Merging", "<h2>Co-Merge", "<script", 'src="http', MEANINGS["fid"][1]):
        assert absent not in page
    assert page.index("test &lt;a&gt;") < page.index("test &lt;c&gt;")  # one prompt of each category
    assert "test &lt;b&gt;" not in page
    assert {p.stem for p in (run / "tables").glob("*.csv")} == {"main", "datasets", "categories", "experts", "prompts"}


def test_a_page_has_curves_of_tuning_training_and_co_activation(synthetic, tmp_path):
    run, config = synthetic(tmp_path, merge={"strategies": ["co-merge"]})
    write_report(run, config, run / "report.html")
    page = (run / "report.html").read_text()
    for there in ("<h2>Merging", "<h2>Co-Merge", "<h2>Training", "tuning prompts (n = 3 unsafe, 3 benign)", "down 1"):
        assert there in page
    without = config.model_copy(update={"merge": config.merge.model_copy(update={"strategies": []})})
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
    assert ("CLIPScore (b)" in summary(run), "inappropriate" in summary(run)) == (kind == "safe", False)
    assert over_seeds([run]).startswith("**Methods and benchmarks**")


def test_a_model_file_that_is_not_whole_is_one_sentence(synthetic, tmp_path):
    run, config = synthetic(tmp_path, **PLAIN)
    (run / "model.json").write_text('{"id": "ti')
    with pytest.raises(SafetyDPOError, match=r"model\.json is not a whole JSON file .*delete it and rerun"):
        write_report(run, config, run / "report.html")
