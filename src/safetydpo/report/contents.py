"""Which tables, plots and image grids a run's report has, by its config alone.

The rule names its outputs by this, the report writes what is named. Adding a table or a plot is an entry of TABLES or
PLOTS here, and the call that makes it in `stage`. Free of pandas.
"""

from collections.abc import Callable
from typing import NamedTuple

from safetydpo.config.run import Config
from safetydpo.merging.registry import STRATEGIES
from safetydpo.methods.registry import REFERENCES


class Contents(NamedTuple):
    """Names of tables and plots, in reading order, and the benchmarks that have an image grid."""

    tables: list[str]
    plots: list[str]
    grids: list[str]


def merged_methods(config: Config) -> list[str]:
    """Methods of the matrix that are one model for all categories; base and base-reseed first."""
    found = list(dict.fromkeys(m for m, _ in config.cells() if not m.startswith("expert-")))
    return [m for m in REFERENCES if m in found] + [m for m in found if m not in REFERENCES]


def first_benchmark(config: Config, kind: str) -> str | None:
    """Name of the first benchmark of a kind."""
    return next((b.name for b in config.benchmarks if b.kind == kind), None)


def compared(config: Config) -> list[str]:
    """Methods that are compared by category: those on the first unsafe benchmark that are one model."""
    first = first_benchmark(config, "unsafe")
    return [m for m in merged_methods(config) if m != "base-reseed" and (m, first) in config.cells()]


def shown_cells(config: Config) -> list[tuple[str, str]]:
    """Cells whose images are shown: what is one model, on the benchmark's own seeds."""
    return [cell for cell in config.cells() if cell[0] != "base-reseed" and not cell[0].startswith("expert-")]


def _always(_: Config) -> bool:
    return True


def _compared(config: Config) -> bool:
    return bool(compared(config))


def _with_experts(config: Config) -> bool:
    shown = {first_benchmark(config, kind) for kind in ("unsafe", "safe")}
    return any(method.startswith("expert-") and benchmark in shown for method, benchmark in config.cells())


def _tuned(config: Config) -> bool:
    return len(config.tune.scales) > 1


def _attacked(config: Config) -> bool:
    return bool(config.attack_names)


def _coactive(config: Config) -> bool:
    return any(STRATEGIES[name].coactivation for name in config.merge.strategies)


# name -> whether a run of this config has it
TABLES: dict[str, Callable[[Config], bool]] = {
    "main": _always,
    "datasets": _always,
    "categories": _compared,
    "experts": _with_experts,
    "merging": _tuned,
    "attacks": _attacked,
    "attack-costs": _attacked,
    "prompts": _always,
}
PLOTS: dict[str, Callable[[Config], bool]] = {
    "categories": _compared,
    "merging": _tuned,
    "coactivation": _coactive,
    "similarity": lambda config: config.prompts.measures_similarity,
    "attacks": _attacked,
    "training": _always,
}


def contents(config: Config) -> Contents:
    """What the report of a config has."""
    tables, plots = ([name for name, has in entries.items() if has(config)] for entries in (TABLES, PLOTS))
    return Contents(tables, plots, [b.name for b in config.benchmarks if ("base", b.name) in config.cells()])
