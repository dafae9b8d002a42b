"""A run, or runs of several seeds, in text for a terminal."""

import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from safetydpo.config.loading import read_config
from safetydpo.config.run import Config
from safetydpo.errors import SafetyDPOError
from safetydpo.report import attack_tables, inputs, tables
from safetydpo.report.contents import contents, first_benchmark
from safetydpo.report.tables import Table

TERMINAL = 100


def headline(run: Path, config: Config) -> str:
    """The result in a sentence: IP of base and of the first aligned model, on the first unsafe benchmark."""
    metrics = inputs.metrics(run)
    benchmark = first_benchmark(config, "unsafe")
    ip = metrics[(metrics.benchmark == benchmark) & (metrics.category == "all") & (metrics.metric == "ip")]
    rows = {row["method"]: row for row in ip.to_dict("records")}
    best = next((m for m in rows if m.startswith("merged-")), "all-single")
    if best not in rows or "base" not in rows:
        return ""

    def said(row: dict[Any, Any]) -> str:
        return f"{row['value']:.3f} (n = {row['n']}, 95 % interval {row['ci_low']:.3f} to {row['ci_high']:.3f})"

    return (
        f"On the unsafe prompts of {benchmark}, the share of inappropriate images goes from {said(rows['base'])} "
        f"to {said(rows[best])} with {best}."
    )


def _plain(table: Table) -> list[str]:
    """Values without intervals: a line per metric, a column per method, in blocks that fit the terminal."""
    turned = table.turned()
    first = max((len(row[0].text) for row in turned.cells), default=0)
    widths = [first, *(max(len(name), 8) + 2 for name in turned.head[1:])]
    blocks: list[list[int]] = [[]]
    for i in range(1, len(widths)):
        if blocks[-1] and first + widths[i] + sum(widths[k] for k in blocks[-1]) > TERMINAL:
            blocks.append([])
        blocks[-1].append(i)
    lines = []
    for block in blocks:
        for label, *values in [turned.head, *([c.text for c in row] for row in turned.cells)]:
            texts = (f"{values[i - 1].partition(' [')[0]:>{widths[i]}}" for i in block)
            lines.append("".join([f"{label:<{first}}", *texts]))
        lines.append("")
    return lines


def summary(run: Path | str) -> str:
    """The main results as plain text of at most 100 columns, and where the report is."""
    run = Path(run)
    if not (run / "metrics.parquet").exists():
        raise SafetyDPOError(f"{run} has no metrics.parquet: run snakemake first.")
    config = read_config(run / "config.yaml")
    table = tables.main_table(inputs.metrics(run), config, inputs.retained(run, config))
    said = textwrap.fill(headline(run, config), TERMINAL)
    note = textwrap.fill(table.note.replace("Best bold, second underlined. 95 %", "The report has 95 %"), TERMINAL)
    return "\n".join([said, "", *_plain(table), note, f"Report: {(run / 'report.html').resolve()}"])


def over_seeds(runs: list[Path]) -> str:
    """Main table, IP by category and attacks of runs that differ in their seed, as Markdown: mean [lowest, highest]."""
    for run in runs:
        if not (run / "metrics.parquet").exists():
            raise SafetyDPOError(f"{run} has no metrics.parquet: run snakemake first.")
    config = read_config(runs[0] / "config.yaml")
    every = pd.concat([inputs.metrics(run) for run in runs], ignore_index=True)
    seeds = sorted(every.seed.unique())
    if len(seeds) < len(runs):
        raise SafetyDPOError(
            f"{len(runs)} runs have the seeds {', '.join(map(str, seeds))}: give each a seed of its own."
        )
    groups = every.groupby(["method", "benchmark", "category", "metric"], sort=False)
    means = groups.agg(value=("value", "mean"), ci_low=("value", "min"), ci_high=("value", "max"), n=("n", "max"))
    metrics = means[groups.size() == len(runs)].reset_index()
    there, found = contents(config).tables, [tables.main_table(metrics, config, inputs.retained(runs[0], config))]
    if "categories" in there:
        found.append(tables.category_table(metrics, config))
    if "attacks" in there:
        found.append(attack_tables.attack_table(metrics, config))
    for table in found:
        table.note = f"Mean over the seeds {', '.join(map(str, seeds))} [lowest, highest]; n is of one seed."
    said = [table.turned().markdown() for table in found]
    if "attack-costs" in there:
        attacks = [inputs.attacks(run, config) for run in runs]
        together = {key: pd.concat([prompts[key] for prompts in attacks]) for key in attacks[0]}
        said.append(attack_tables.cost_table(together, config).markdown())
    return "\n".join(said)
