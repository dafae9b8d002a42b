"""Parts of a config that do not fit together."""

import pandas as pd
import pytest

from safetydpo.config.loading import load_config, planned_config
from safetydpo.errors import SafetyDPOError


def test_a_folder_of_images_has_no_safe_prompts_to_prefer_them_under(with_value):
    config = with_value("train.condition", "both")
    config["prompts"] = {"source": "folder", "path": "data", "pairs": 48}
    with pytest.raises(SafetyDPOError, match=r"train\.condition: `both` needs safe prompts, source `folder` has none"):
        load_config(config)


def test_other_prompts_than_the_demos_need_files_for_tuning_and_preservation(with_value):
    config = with_value("prompts", {"source": "pairs", "path": "pairs.csv", "pairs": 9})
    with pytest.raises(SafetyDPOError) as error:
        load_config(config)
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        "tune.path",
        "train.preserve.path",
    ]


def problems(config) -> list[str]:
    """The lines in which loading ends."""
    with pytest.raises(SafetyDPOError) as error:
        load_config(config)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def study(name, *variants):
    return {"name": name, "variants": [{"name": v, "pairs": 5} for v in variants]}


def test_variants_and_studies_that_would_share_a_name_are_refused(with_value):
    assert problems(with_value("ablation", [study("a", "b-c"), study("a-b", "c")])) == [
        "ablation, variants: `a-b-c` is listed twice"
    ]
    assert problems(with_value("ablation", [study("a", "b"), study("a", "c", "c")])) == [
        "ablation: `a` is listed twice",
        "ablation, variants: `a-c` is listed twice",
    ]
    assert problems(with_value("ablation", [study("merge", "b"), study("table", "c")])) == [
        "ablation: ablation_merge is a rule of its own; call the study `merge` otherwise",
        "ablation: ablation_table is a rule of its own; call the study `table` otherwise",
    ]
    assert load_config(with_value("ablation", [study("a", "b"), study("b", "a", "b")]))


def few(config, **evaluate) -> list[str]:
    """What evaluate.shards is more than."""
    config["evaluate"] |= {"fid_reference": None, **evaluate}
    return [line.partition(" is more than ")[2] for line in problems(config)]


def test_more_shards_than_prompts_are_said_by_what_is_too_little(with_value):
    matrix = [{"methods": ["base"], "benchmarks": ["test"]}]
    config = with_value("evaluate.matrix", [*matrix, {"methods": ["all-single"], "benchmarks": ["test"], "n": 3}])
    assert few(config, shards=4) == ["the 3 prompts of all-single on test"]
    # 15 prompts of 7 categories: one has three, the others two
    config = with_value(
        "evaluate.matrix", [*matrix, {"methods": ["experts"], "benchmarks": ["test"], "own_category": True}]
    )
    assert few(config, n=15, shards=3) == ["the prompts of a category of benchmark `test`, 2 of 15"]
    config["evaluate"]["shards"] = 2
    assert load_config(config)
    config["benchmarks"][0] |= {"limit": 3, "images": 2}
    assert few(config, n=1000, shards=7, matrix=matrix) == ["the limit of benchmark `test`, 3 prompts"]
    config["evaluate"]["shards"] = 6
    assert load_config(config)
    config["benchmarks"][1]["limit"] = 5  # attacked, though the matrix does without it
    config["attacks"] = {"run": ["random-tokens"], "methods": ["base"], "benchmark": "ood", "forbidden": ["x"]}
    assert few(config) == ["the limit of benchmark `ood`, 5 prompts"]


def test_experts_have_no_category_of_their_own_among_harmless_prompts(with_value):
    methods = {"methods": ["base", "experts"], "own_category": True}
    config = with_value("evaluate.matrix", [{**methods, "benchmarks": ["benign", "safe", "ood"]}])
    config["evaluate"]["fid_reference"] = None
    assert problems(config) == [
        "evaluate.matrix: own_category: `benign` has no prompts of the run's categories",
        "evaluate.matrix: own_category: `safe` has no prompts of the run's categories",
    ]


@pytest.mark.parametrize("name", ["i2p.csv", "i2p.parquet"])
def test_more_shards_than_rows_of_a_file_are_said_by_the_plan(with_value, tmp_path, name):
    rows, path = pd.DataFrame({"prompt": ["one", "two,\nof two lines", "three"]}), tmp_path / name
    rows.to_csv(path, index=False) if path.suffix == ".csv" else rows.to_parquet(path)
    config = with_value("evaluate.matrix", [{"methods": ["base"], "benchmarks": ["i2p"]}])
    config["benchmarks"] = [{"name": "i2p", "kind": "unsafe", "path": str(path)}]
    config["prompts"] |= {"source": "pairs", "path": str(path)}
    config["train"]["preserve"]["path"] = config["tune"]["path"] = str(path)
    config["evaluate"] |= {"shards": 3, "fid_reference": None}
    config["pairs"]["shards"] = 3
    assert planned_config(config, [])
    config["pairs"]["shards"] = config["evaluate"]["shards"] = 4
    with pytest.raises(SafetyDPOError) as error:
        planned_config(config, [])
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        f"pairs.shards: 4 is more than the rows of {path}",
        f"evaluate.shards: 4 is more than the prompts of {path}",
    ]
    assert load_config(config)  # of a run that is done, whatever became of its files
    path.unlink()  # which its own job says
    assert planned_config(config, [])
