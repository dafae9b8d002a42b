"""Who judged, by which rule, how verdicts differ: the feet of all tables, and two tables of their own."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd

from safetydpo.config.judges import Verdict
from safetydpo.config.rules import scores_in
from safetydpo.config.run import Config
from safetydpo.report.contents import Judged, compared, judged_benchmarks, merged_methods
from safetydpo.report.tables import Cell, Column, Table, build, span


def foot(
    verdicts: Sequence[Verdict], judges: dict[str, Any], metrics: pd.DataFrame, cells: Collection[Judged] = ()
) -> str:
    """Rules, classes and thresholds of verdicts, versions and hashes of their judges, and the images without a verdict.

    judges: what judges.json says of each; metrics: the long table, for what could not be judged of the table's cells.
    """
    rules = [f"{'IP by v' if i == 0 else 'V'}erdict {v.name}: {v.text}." for i, v in enumerate(verdicts)]
    asked = {name: judges[name] for verdict in verdicts for name in verdict.judges}
    return " ".join(
        [*rules, *_classes(verdicts, judges), f"Judges: {', '.join(map(_judge, asked, asked.values()))}."]
    ) + _unjudged(verdicts, metrics, cells)


def _judge(name: str, about: dict[str, Any]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in about.items() if key != "labels")
    return f"{name} ({facts})" if facts else name


def _classes(verdicts: Sequence[Verdict], judges: dict[str, Any]) -> list[str]:
    """The classes that a score's `*` stands for, each such score once."""
    said = {}
    for verdict in verdicts:
        for score in scores_in(verdict.parsed):
            if any("*" in label for label in score.labels):
                known = judges[score.judge]["labels"]
                meant = [x for x in known if any(fnmatchcase(x, label) for label in score.labels)]
                said[str(score)] = f"{score} is {', '.join(meant)}."
    return list(said.values())


def _unjudged(verdicts: Sequence[Verdict], metrics: pd.DataFrame, cells: Collection[Judged]) -> str:
    """Images of cells that a verdict does not count, in all and where they are most; "" where there are none."""
    said, asked = [], set(cells)
    where = zip(metrics.method, metrics.benchmark, metrics.category, strict=True)
    inside = metrics[np.array([cell in asked for cell in where], bool)]
    for verdict in verdicts:
        rows = inside[inside.metric == f"unjudged:{verdict.name}"]
        if len(rows):
            counts = rows.assign(count=(rows.value * rows.n).round()).sort_values(
                "count", ascending=False, kind="stable"
            )
            worst = counts.iloc[0]
            said.append(
                f" Without a verdict by {verdict.name}, and not counted: {counts['count'].sum():.0f} images, most of "
                f"{worst['method']} on {worst['benchmark']}, {worst['count']:.0f} of {worst['n']}."
            )
    return "".join(said)


def verdict_table(metrics: pd.DataFrame, config: Config, differences: pd.DataFrame | None = None) -> Table:
    """Methods x verdicts, on every benchmark that verdicts matter on: IP by each."""
    columns = [
        Column(f"{verdict.name} ({benchmark})", benchmark, "all", f"ip:{verdict.name}")
        for benchmark in judged_benchmarks(config)
        for verdict in config.judges.verdicts
    ]
    methods = merged_methods(config)
    return build("verdicts", "IP by every verdict", "", metrics, methods, columns, differences=differences)


def agreement_table(agreement: pd.DataFrame, config: Config) -> Table:
    """Pairs of verdicts x methods, on the first benchmark that is judged; its data has them all, by category too."""
    benchmark, methods = judged_benchmarks(config)[0], compared(config)
    rows = agreement[(agreement.benchmark == benchmark) & (agreement.category == "all")]
    found = {(row["verdict"], row["other"], row["method"]): row for row in rows.to_dict("records")}
    methods = [m for m in methods if m in set(rows.method)]
    pairs = list(dict.fromkeys((verdict, other) for verdict, other, _ in found))
    cells = [
        [Cell(f"{verdict}, {other}"), *(Cell(_agreed(found.get((verdict, other, m)))) for m in methods)]
        for verdict, other in pairs
    ]
    size = f"n = {span(rows[rows.method.isin(methods)].n)}" if methods else "None was judged"
    note = (
        f"Share of images on which two verdicts agree, and Cohen's kappa: what is left of it when chance is taken off. "
        f"kappa –: one of the two calls all images the same, and kappa is not defined. {size}. "
        "By category and on other benchmarks: tables/agreement.csv."
    )
    return Table("agreement", f"Agreement of verdicts ({benchmark})", note, ["verdicts", *methods], cells, agreement)


def _agreed(row: dict[Any, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{row['agreement']:.3f} [kappa {'–' if pd.isna(row['kappa']) else format(row['kappa'], '.2f')}]"
