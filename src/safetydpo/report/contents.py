"""Which tables, plots and image grids a run's report has, by its config alone.

The rule names its outputs by this, the report writes what is named. Adding a table or a plot is an entry of TABLES or
PLOTS here, and the call that makes it in `stage`. Free of pandas.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from safetydpo.config.rules import thresholds
from safetydpo.config.run import Config
from safetydpo.merging.registry import COACTIVATION, STRATEGIES
from safetydpo.methods.registry import REFERENCES, method_of


class Contents(NamedTuple):
    """Names of tables and plots, in reading order, the benchmarks that have an image grid, and whether there is one of
    the images that verdicts differ on.
    """

    tables: list[str]
    plots: list[str]
    grids: list[str]
    disagreement: bool

    @property
    def figures(self) -> list[str]:
        """Names of the figures' files."""
        grids = [f"grid-{benchmark}.png" for benchmark in self.grids]
        return [*(f"{name}.svg" for name in self.plots), *grids, *(["disagreement.png"] if self.disagreement else [])]


def merged_methods(config: Config) -> list[str]:
    """Methods of the matrix that are one model for all categories; base and base-reseed first."""
    found = list(dict.fromkeys(m for m, _ in config.cells() if not m.startswith("expert-")))
    return [m for m in REFERENCES if m in found] + [m for m in found if m not in REFERENCES]


def aligned_methods(config: Config) -> list[str]:
    """Those of them that are compared with base."""
    return [m for m in merged_methods(config) if m not in REFERENCES]


def compared(config: Config) -> list[str]:
    """Methods that are compared by category: those on the first unsafe benchmark that are one model."""
    first = config.first_benchmark("unsafe")
    return [m for m in merged_methods(config) if m != "base-reseed" and (m, first) in config.cells()]


def shown_cells(config: Config) -> list[tuple[str, str]]:
    """Cells whose images are shown: what is one model, on the benchmark's own seeds."""
    return [cell for cell in config.cells() if cell[0] != "base-reseed" and not cell[0].startswith("expert-")]


def shown_categories(config: Config, there: Iterable[str]) -> list[str]:
    """Categories that the methods are compared by: those of the experts; where nothing is trained, those that the
    prompts have (`there`, with `all`).
    """
    found, own = set(there) - {"all"}, config.category_names
    return own if config.trains else [c for c in own if c in found] + sorted(found - set(own))


def shown_externals(config: Config) -> list[str]:
    """Names of the models of others among the methods."""
    return [method_of(m).variant for m in merged_methods(config) if method_of(m).kind.of == "name"]


def judged_benchmarks(config: Config) -> list[str]:
    """Benchmarks on which verdicts are compared: those of unsafe prompts and of prompts that only sound so."""
    shown = {benchmark for _, benchmark in shown_cells(config)}
    return [b.name for b in config.benchmarks if b.kind in ("unsafe", "over-refusal") and b.name in shown]


# Method, benchmark, and category or "all"
Judged = tuple[str, str, str]


def judged_cells(config: Config) -> dict[str, list[Judged]]:
    """Table -> the cells whose images its verdicts are of; what tuning and attacks tried is none."""
    unsafe, loud, one_model = config.first_benchmark("unsafe"), judged_benchmarks(config), merged_methods(config)
    whole = [(method, benchmark, "all") for method, benchmark in config.cells() if method in one_model]
    experts = [
        (method, benchmark, method.removeprefix("expert-"))
        for method, benchmark in config.cells()
        if method.startswith("expert-") and benchmark == unsafe
    ]
    everywhere = [cell for cell in whole if cell[1] in loud]
    by_category = [cell for cell in whole if cell[1] == unsafe and cell[0] in compared(config)]
    return {
        "main": everywhere,
        "datasets": [cell for cell in whole if cell[0] == "base"],
        "categories": [*by_category, *experts],
        "verdicts": everywhere,
        "agreement": [cell for cell in everywhere if cell[1] == loud[0] and cell[0] in compared(config)],
        "experts": [*(cell for cell in by_category if cell[0] == "base"), *experts],
        "attacks": [(method, benchmark, "all") for method, benchmark in config.attack_cells()],
    }


def harmless_benchmarks(config: Config) -> list[str]:
    """Benchmarks that say what base and another model of the first unsafe benchmark keep; the most telling first."""
    methods, kinds = [m for m in compared(config) if m != "base"], ("benign", "over-refusal", "safe")
    names = [b.name for kind in kinds for b in config.benchmarks if b.kind == kind]
    cells = config.cells()
    return [b for b in names if ("base", b) in cells and any((m, b) in cells for m in methods)]


def _always(_: Config) -> bool:
    return True


def _compared(config: Config) -> bool:
    return bool(compared(config))


def _with_experts(config: Config) -> bool:
    shown = {config.first_benchmark(kind) for kind in ("unsafe", "safe")}
    return any(method.startswith("expert-") and benchmark in shown for method, benchmark in config.cells())


def _trained(config: Config) -> bool:
    return config.trains


def _tuned(config: Config) -> bool:
    return config.trains and len(config.tune.scales) > 1


def _attacked(config: Config) -> bool:
    return bool(config.attack_names)


def _weighed(config: Config) -> bool:
    return ("base", config.first_benchmark("unsafe")) in config.cells() and bool(harmless_benchmarks(config))


def _several_verdicts(config: Config) -> bool:
    return len(config.judges.verdicts) > 1 and bool(judged_benchmarks(config))


def _with_thresholds(config: Config) -> bool:
    judges = config.judges
    own = any(judge.kind.number for judge in judges.panel)
    return _compared(config) and (own or any(any(thresholds(verdict.parsed)) for verdict in judges.verdicts))


def _coactive(config: Config) -> bool:
    return config.trains and any(STRATEGIES[name].statistics == COACTIVATION for name in config.merge.strategies)


def _similar(config: Config) -> bool:
    return config.trains and config.prompts.measures_similarity


# name -> whether a run of this config has it
TABLES: dict[str, Callable[[Config], bool]] = {
    "main": _always,
    "datasets": _always,
    "categories": _compared,
    "verdicts": _several_verdicts,
    "agreement": _several_verdicts,
    "experts": _with_experts,
    "merging": _tuned,
    "attacks": _attacked,
    "attack-costs": _attacked,
    "prompts": _trained,
}
PLOTS: dict[str, Callable[[Config], bool]] = {
    "tradeoff": _weighed,
    "categories": _compared,
    "thresholds": _with_thresholds,
    "merging": _tuned,
    "coactivation": _coactive,
    "similarity": _similar,
    "attacks": _attacked,
    "training": _trained,
}


def contents(config: Config) -> Contents:
    """What the report of a config has."""
    tables, plots = ([name for name, has in entries.items() if has(config)] for entries in (TABLES, PLOTS))
    grids = [b.name for b in config.benchmarks if ("base", b.name) in config.cells()]
    return Contents(tables, plots, grids, _several_verdicts(config))
