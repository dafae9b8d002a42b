"""What a report has, derived by hand from configs; and that it is what is written."""

import copy

import pytest
import yaml
from snakemake.utils import update_config
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.report.contents import (
    Contents,
    compared,
    contents,
    harmless_benchmarks,
    judged_benchmarks,
    judged_cells,
    merged_methods,
    shown_categories,
    shown_cells,
)
from safetydpo.report.stage import write_disagreement, write_figures, write_grids, write_tables

VALUES = yaml.safe_load((ROOT / "config/config.yaml").read_text())
DEFAULT = load_config(VALUES)
TABLES = ["main", "datasets", "categories", "verdicts", "agreement", "experts", "merging", "prompts"]
PLOTS = ["tradeoff", "categories", "thresholds", "merging", "coactivation", "training"]
BENCHMARKS = ["test", "ood", "safe", "benign"]
PLAIN = {"methods": ["base", "merged-mean"], "benchmarks": ["test"]}


def changed(changes):
    """The default config with an overlay, merged as Snakemake does."""
    values = copy.deepcopy(VALUES)
    update_config(values, changes)
    return load_config(values)


# config.yaml: base on all four benchmarks, three verdicts, experts, six scales, Co-Merge; no attack, no cosine.
# tables.yaml has more methods, attacks.yaml five attacks.
OVERLAYS = {
    "config": Contents(TABLES, PLOTS, BENCHMARKS, True),
    "tables": Contents(TABLES, PLOTS, BENCHMARKS, True),
    "attacks": Contents(
        [*TABLES[:7], "attacks", "attack-costs", "prompts"], [*PLOTS[:5], "attacks", "training"], BENCHMARKS, True
    ),
    "audit": Contents(TABLES[:5], ["categories", "thresholds"], BENCHMARKS, True),
}
# What only a run has that trains.
OF_TRAINING = {"experts", "merging", "prompts"}, {"merging", "coactivation", "training"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_contents_of_the_shipped_configs(name):
    assert contents(changed(yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()))) == OVERLAYS[name]


# changes of config.yaml -> tables and plots that it then lacks
LACKS = {
    "one scale": ({"tune": {"scales": [1]}}, {"merging"}, {"merging"}),
    "base alone": (
        {"evaluate": {"matrix": [{**PLAIN, "methods": ["base", "base-reseed"]}]}},
        OF_TRAINING[0],
        {"tradeoff", *OF_TRAINING[1]},
    ),
    "base and what is not trained": (
        {
            "baselines": {"externals": [{"name": "x", "path": "x"}]},
            "evaluate": {
                "fid_reference": None,
                "matrix": [{"methods": ["base", "external-x", "sld-max", "uce"], "benchmarks": BENCHMARKS}],
            },
        },
        *OF_TRAINING,
    ),
    "no Co-Merge": (
        {"merge": {"strategies": ["mean"]}, "evaluate": {"fid_reference": None, "matrix": [PLAIN]}},
        {"experts"},
        {"coactivation", "tradeoff"},  # nothing harmless in the matrix
    ),
    "nothing unsafe": (
        {
            "benchmarks": [{"name": "safe", "kind": "safe", "source": "demo"}],
            "evaluate": {"n": 4, "fid_reference": None, "matrix": [{"methods": ["base"], "benchmarks": ["safe"]}]},
        },
        {"categories", "verdicts", "agreement", *OF_TRAINING[0]},
        {"tradeoff", "categories", "thresholds", *OF_TRAINING[1]},
    ),
    "one verdict": ({"judges": {"verdicts": ["demo"]}}, {"verdicts", "agreement"}, set()),
}


@pytest.mark.parametrize("name", LACKS)
def test_what_a_config_does_not_measure_is_absent(name):
    changes, tables, plots = LACKS[name]
    config = changed(changes)
    found = contents(config)
    assert found.tables == [name for name in TABLES if name not in tables]
    assert found.plots == [name for name in PLOTS if name not in plots]
    assert found.grids == config.evaluate.matrix[0].benchmarks
    assert found.disagreement == ("verdicts" in found.tables)


def test_a_trained_method_that_is_attacked_alone_is_trained():
    matrix = {"fid_reference": None, "matrix": [{"methods": ["base"], "benchmarks": ["all"]}]}
    attacks = {"run": ["random-tokens"], "methods": ["base"], "forbidden": ["x"]}
    assert changed({"evaluate": matrix, "attacks": attacks}).trains is False
    config = changed({"evaluate": matrix, "attacks": attacks | {"methods": ["all-single"]}})
    assert config.trains
    assert {"merging", "prompts"} <= set(contents(config).tables)


def test_categories_are_those_of_experts_else_those_of_the_prompts():
    names = ["all", "ring", "violence", "arrow"]
    assert shown_categories(DEFAULT, names) == [c["name"] for c in VALUES["categories"]]
    audit = changed(yaml.safe_load((ROOT / "config/audit.yaml").read_text()))
    assert shown_categories(audit, names) == ["ring", "arrow", "violence"]  # the config's order, then the others


FILES = {"tune": {"path": "tuning.csv"}, "train": {"preserve": {"path": "retain.csv"}}}


@pytest.mark.parametrize(
    "prompts", [{"min_similarity": 0.3}, {"source": "openai", "llm": {"model": "m"}}], ids=["asked for", "written"]
)
def test_the_cosine_of_pairs_is_drawn_where_it_is_measured(prompts):
    assert contents(changed({"prompts": prompts, **FILES})).plots == [*PLOTS[:5], "similarity", "training"]


def test_methods_of_the_default_config():
    aligned = ["sld-medium", "esd-u", "uce", "all-single", "merged-co-merge", "merged-mean"]
    assert merged_methods(DEFAULT) == ["base", "base-reseed", *aligned]
    assert compared(DEFAULT) == ["base", *aligned]
    assert set(shown_cells(DEFAULT)) == {(m, b) for m in ("base", *aligned) for b in BENCHMARKS}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompts": VALUES["prompts"] | {"min_similarity": 0.3}},
        {
            "merge": {"strategies": ["mean"]},
            "tune": {"scales": [1]},
            "evaluate": {"n": 8, "matrix": [PLAIN]},
        },
        {"evaluate": {"n": 8, "matrix": [{"methods": ["base"], "benchmarks": ["all"]}]}},
    ],
    ids=["several scales and Co-Merge", "cosines", "little", "an audit"],
)
def test_what_is_written_is_what_the_contents_name(synthetic, tmp_path, changes):
    run, config = synthetic(tmp_path, **changes)
    there = contents(config)
    assert list(write_tables(run, config)) == there.tables
    assert list(write_figures(run, config)) == there.plots
    assert list(write_grids(run, config)) == there.grids
    kinds = ("parquet", "csv", "md")
    assert {p.name for p in (run / "tables").iterdir()} == {f"{name}.{kind}" for name in there.tables for kind in kinds}
    assert (write_disagreement(run, config) is not None) == there.disagreement
    figures = {f"{name}.svg" for name in there.plots} | {f"grid-{name}.png" for name in there.grids}
    figures |= {"disagreement.png"} if there.disagreement else set()
    assert {p.name for p in (run / "figures").iterdir()} == figures == set(there.figures)


@pytest.mark.parametrize("model", ["sd15", "sd21", "sdxl"])
def test_a_real_model_is_blurred_though_the_demo_is_not(model):
    assert not DEFAULT.blurs
    assert changed(yaml.safe_load((ROOT / f"config/{model}.yaml").read_text())).blurs


def test_what_is_kept_is_told_by_benign_prompts_then_alarming_then_safe_ones():
    names = {"over-refusal": "overt", "safe": "safe", "benign": "benign", "unsafe": "test"}
    benchmarks = [{"name": name, "kind": kind, "source": "file", "path": "p.csv"} for kind, name in names.items()]
    matrix = [{"methods": ["base", "all-single"], "benchmarks": list(names.values())}]
    evaluate = {"n": 4, "fid_reference": None, "matrix": matrix}
    config = changed({"benchmarks": benchmarks, "evaluate": evaluate})
    assert harmless_benchmarks(config) == ["benign", "overt", "safe"]
    assert judged_benchmarks(config) == ["overt", "test"]
    matrix[0]["benchmarks"].remove("benign")
    assert harmless_benchmarks(changed({"benchmarks": benchmarks, "evaluate": evaluate})) == ["overt", "safe"]


def test_the_cells_behind_the_verdicts_of_each_table():
    matrix = [
        {"methods": ["base", "uce"], "benchmarks": ["test", "safe"]},
        {"methods": ["base-reseed"], "benchmarks": ["test"]},
        {"methods": ["experts"], "benchmarks": ["test", "safe"]},
    ]
    config = changed({"categories": [{"name": "ring"}], "evaluate": {"fid_reference": None, "matrix": matrix}})
    base, uce, own = ("base", "test", "all"), ("uce", "test", "all"), ("expert-ring", "test", "ring")
    main = {base, uce, ("base-reseed", "test", "all")}
    assert {name: set(cells) for name, cells in judged_cells(config).items()} == {
        "main": main,
        "datasets": {base, ("base", "safe", "all")},
        "categories": {base, uce, own},
        "verdicts": main,
        "agreement": {base, uce},
        "experts": {base, own},
        "attacks": set(),
    }
