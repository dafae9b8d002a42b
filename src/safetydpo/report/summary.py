"""A run, or runs of several seeds, in text for a terminal."""

import textwrap
from pathlib import Path

import pandas as pd

from safetydpo.config.judges import Verdict
from safetydpo.config.loading import read_config
from safetydpo.config.run import Config
from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.registry import MEASURES
from safetydpo.report import attack_tables, inputs, judge_tables, tables
from safetydpo.report.contents import aligned_methods, contents, judged_cells
from safetydpo.report.decision import sentences
from safetydpo.report.findings import findings
from safetydpo.report.tables import ENDS, INTERVALS, RANKED, Table, build, of_benchmark
from safetydpo.storage.files import read_parquet

TERMINAL = 100


def headline(run: Path, config: Config) -> list[str]:
    """The result in three sentences: the decision, or what was found where nothing is compared with base; one where
    there is none, with the reason.
    """
    if not aligned_methods(config):
        return findings(inputs.metrics(run), config)
    return sentences(inputs.metrics(run), inputs.differences(run), config)


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
    metrics = inputs.metrics(run)
    table = tables.main_table(metrics, config, inputs.retained(run, config))
    said = [textwrap.fill(sentence, TERMINAL) for sentence in headline(run, config)]
    who = judge_tables.foot([config.judges.headline], inputs.judges(run), metrics, judged_cells(config)["main"])
    note = table.note.replace(f"{RANKED} ", "").replace(INTERVALS, "Intervals are in the report")
    page = f"Report: {(run / 'report.html').resolve()}"
    return "\n".join([*said, "", *_plain(table), textwrap.fill(note, TERMINAL), textwrap.fill(who, TERMINAL), page])


def _over_runs(rows: pd.DataFrame, runs: int) -> pd.DataFrame:
    """Mean, lowest (ci_low) and highest (ci_high) of each value that all runs have; rows: long tables of metrics."""
    groups = rows.groupby(["method", "benchmark", "category", "metric"], sort=False)
    means = groups.agg(value=("value", "mean"), ci_low=("value", "min"), ci_high=("value", "max"), n=("n", "max"))
    return means[groups.size() == runs].reset_index()


def _ablations(runs: list[Path], config: Config) -> list[Table]:
    """The ablation tables that all runs have, over the runs."""
    found = []
    for path in sorted((runs[0] / "tables").glob("ablation-*.parquet")):
        written = [run / "tables" / path.name for run in runs]
        if not all(other.exists() for other in written):
            continue
        wide = pd.concat([read_parquet(other) for other in written], ignore_index=True)
        shown = [of_benchmark(metric, b.name) for b in config.benchmarks for metric in MEASURES]
        columns = [column for column in shown if column.label in wide]
        rows = []
        for column in columns:
            values = {name: wide[column.label + end] for end, name in ENDS.items()}
            facts = {"method": wide.method, "benchmark": column.benchmark, "category": "all", "metric": column.metric}
            rows.append(pd.DataFrame(facts | values).dropna(subset="value"))
        study = path.stem.removeprefix("ablation-")
        metrics = _over_runs(pd.concat(rows), len(runs))
        found.append(build(path.stem, f"Ablation: {study}", "", metrics, list(dict.fromkeys(wide.method)), columns))
    return found


def over_seeds(runs: list[Path]) -> str:
    """Main table, IP by category, attacks and ablations of runs that differ in their seed, as Markdown: mean [lowest,
    highest].
    """
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
    metrics = _over_runs(every, len(runs))

    def judged(verdict: Verdict, table: str) -> str:
        return judge_tables.foot([verdict], inputs.judges(runs[0]), every, judged_cells(config).get(table, ()))

    there, found = contents(config).tables, [tables.main_table(metrics, config, inputs.retained(runs[0], config))]
    if "categories" in there:
        found.append(tables.category_table(metrics, config))
    if "attacks" in there:
        found.append(attack_tables.attack_table(metrics, config))
    found += _ablations(runs, config)
    for table in found:
        table.note = (
            f"Mean over the seeds {', '.join(map(str, seeds))} [lowest, highest]; n is of one seed. Best bold, second "
            f"underlined, where the ranges of the two are apart.\n{judged(config.judges.headline, table.name)}"
        )
    said = [table.turned().markdown() for table in found]
    if "attack-costs" in there:
        attacks = [inputs.attacks(run, config) for run in runs]
        together = {key: pd.concat([prompts[key] for prompts in attacks]) for key in attacks[0]}
        costs = attack_tables.cost_table(together, config)
        costs.note += f"\n{judged(config.judges.acting, costs.name)}"
        said.append(costs.markdown())
    return "\n".join(said)
