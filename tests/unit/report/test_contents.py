"""What a report has, derived by hand from configs; and that it is what is written."""

import copy

import pytest
import yaml
from snakemake.utils import update_config
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.report.contents import Contents, compared, contents, merged_methods, shown_cells
from safetydpo.report.stage import write_figures, write_grids, write_tables

VALUES = yaml.safe_load((ROOT / "config/config.yaml").read_text())
DEFAULT = load_config(VALUES)
TABLES = ["main", "datasets", "categories", "experts", "merging", "prompts"]
PLOTS = ["categories", "merging", "coactivation", "training"]
BENCHMARKS = ["test", "ood", "safe", "benign"]
PLAIN = {"methods": ["base", "merged-mean"], "benchmarks": ["test"]}


def changed(changes):
    """The default config with an overlay, merged as Snakemake does."""
    values = copy.deepcopy(VALUES)
    update_config(values, changes)
    return load_config(values)


# config.yaml: base on all four benchmarks, experts, six scales, Co-Merge; no attack, no cosine. tables.yaml has more
# methods, attacks.yaml five attacks.
OVERLAYS = {
    "config": Contents(TABLES, PLOTS, BENCHMARKS),
    "tables": Contents(TABLES, PLOTS, BENCHMARKS),
    "attacks": Contents(
        [*TABLES[:5], "attacks", "attack-costs", "prompts"], [*PLOTS[:3], "attacks", "training"], BENCHMARKS
    ),
}


@pytest.mark.parametrize("name", OVERLAYS)
def test_contents_of_the_shipped_configs(name):
    assert contents(changed(yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()))) == OVERLAYS[name]


# changes of config.yaml -> tables and plots that it then lacks
LACKS = {
    "one scale": ({"tune": {"scales": [1]}}, {"merging"}, {"merging"}),
    "no experts": ({"evaluate": {"matrix": [{**PLAIN, "methods": ["base", "base-reseed"]}]}}, {"experts"}, set()),
    "no Co-Merge": (
        {"merge": {"strategies": ["mean"]}, "evaluate": {"fid_reference": None, "matrix": [PLAIN]}},
        {"experts"},
        {"coactivation"},
    ),
    "nothing unsafe": (
        {
            "benchmarks": [{"name": "safe", "kind": "safe", "source": "demo"}],
            "evaluate": {"n": 4, "fid_reference": None, "matrix": [{"methods": ["base"], "benchmarks": ["safe"]}]},
        },
        {"categories", "experts"},
        {"categories"},
    ),
}


@pytest.mark.parametrize("name", LACKS)
def test_what_a_config_does_not_measure_is_absent(name):
    changes, tables, plots = LACKS[name]
    config = changed(changes)
    found = contents(config)
    assert found.tables == [name for name in TABLES if name not in tables]
    assert found.plots == [name for name in PLOTS if name not in plots]
    assert found.grids == config.evaluate.matrix[0].benchmarks


FILES = {"tune": {"path": "tuning.csv"}, "train": {"preserve": {"path": "retain.csv"}}}


@pytest.mark.parametrize(
    "prompts", [{"min_similarity": 0.3}, {"source": "openai", "llm": {"model": "m"}}], ids=["asked for", "written"]
)
def test_the_cosine_of_pairs_is_drawn_where_it_is_measured(prompts):
    assert contents(changed({"prompts": prompts, **FILES})).plots == [*PLOTS[:3], "similarity", "training"]


def test_methods_of_the_default_config():
    aligned = ["sld-medium", "esd-u", "uce", "all-single", "merged-co-merge"]
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
    ],
    ids=["several scales and Co-Merge", "cosines", "little"],
)
def test_what_is_written_is_what_the_contents_name(synthetic, tmp_path, changes):
    run, config = synthetic(tmp_path, **changes)
    there = contents(config)
    assert list(write_tables(run, config)) == there.tables
    assert list(write_figures(run, config)) == there.plots
    assert list(write_grids(run, config)) == there.grids
    kinds = ("parquet", "csv", "md")
    assert {p.name for p in (run / "tables").iterdir()} == {f"{name}.{kind}" for name in there.tables for kind in kinds}
    figures = {f"{name}.svg" for name in there.plots} | {f"grid-{name}.png" for name in there.grids}
    assert {p.name for p in (run / "figures").iterdir()} == figures
