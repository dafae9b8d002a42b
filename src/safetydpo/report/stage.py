"""Stage 7: tables, figures and one self-contained page for people to read."""

import base64
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd
import yaml

from safetydpo.config.judges import Verdict
from safetydpo.config.run import Config
from safetydpo.evaluation.metrics import summarise
from safetydpo.evaluation.registry import MEASURES
from safetydpo.evaluation.scores import read_scores
from safetydpo.report import attack_tables, figures, grids, inputs, judge_tables, tables
from safetydpo.report.contents import (
    compared,
    contents,
    judged_cells,
    merged_methods,
    shown_categories,
    shown_cells,
)
from safetydpo.report.decision import Kept, recommended, trade_off, what_is_kept
from safetydpo.report.summary import headline
from safetydpo.report.tables import SHOWN, Table, build, shown_columns
from safetydpo.storage.files import LIBRARIES, read_json, read_parquet, write_text


class Grid(NamedTuple):
    """An image grid of the page: its file, and the prompts of its columns."""

    path: Path
    prompts: list[str]


def write_grids(run: Path, config: Config) -> dict[str, Grid]:
    """figures/grid-<benchmark>.png of every benchmark that base is on: the first prompts, spread over categories."""
    shown = {}
    for benchmark in contents(config).grids:
        methods = [m for m in merged_methods(config) if (m, benchmark) in shown_cells(config)]
        renders = {m: inputs.renders(run, config, m, benchmark) for m in methods}
        base = renders["base"]
        for other in renders.values():  # methods may see fewer prompts
            base = base[base.index.isin(other.index)]
        keys = grids.spread(base, config.report.scenes)
        rows = {m: [(r.image[k], bool(r.flagged[k])) for k in keys] for m, r in renders.items()}
        shown[benchmark] = Grid(run / f"figures/grid-{benchmark}.png", list(base.prompt[keys]))
        grids.grid(rows, config.blurs, shown[benchmark].path)
    return shown


def write_disagreement(run: Path, config: Config) -> Grid | None:
    """figures/disagreement.png of the images that verdicts differ on most, two rows; None where there is one verdict.

    One of the verdicts calls each of them unsafe, so that all are blurred.
    """
    if not contents(config).disagreement:
        return None
    verdicts = [verdict.name for verdict in config.judges.verdicts]
    found, shown = grids.disputed(inputs.calls(run, config), verdicts, 2 * config.report.scenes), []
    renders = {
        cell: inputs.renders(run, config, *cell) for cell in set(zip(found.method, found.benchmark, strict=True))
    }
    for row in found.to_dict("records"):
        said = {
            word: ", ".join(name for name in verdicts if (pd.isna(row[name]) if value is None else row[name] is value))
            for word, value in (("unsafe", True), ("not", False), ("no verdict", None))
        }
        lines = [f"{row['method']}, {row['benchmark']}", *(f"{word}: {names}" for word, names in said.items() if names)]
        image = renders[row["method"], row["benchmark"]].image[row["prompt_id"]]
        shown.append(grids.Tile(image, True, lines))
    grid = Grid(run / "figures/disagreement.png", list(found.prompt))
    grids.tiles(shown, config.report.scenes, config.blurs, grid.path)
    return grid


def write_tables(run: Path, config: Config) -> dict[str, Table]:
    """tables/<name>.parquet, .csv, .md; returns them by name, in reading order.

    The feet say who judged, and by which rule: tuning and attacks go by the first verdict, all else by that of IP.
    """
    metrics, tested, judges = inputs.metrics(run), inputs.differences(run), config.judges
    make: dict[str, Callable[[], Table]] = {
        "main": lambda: tables.main_table(metrics, config, inputs.retained(run, config), tested),
        "datasets": lambda: tables.dataset_table(metrics, config),
        "categories": lambda: tables.category_table(metrics, config, tested),
        "verdicts": lambda: judge_tables.verdict_table(metrics, config, tested),
        "agreement": lambda: judge_tables.agreement_table(inputs.agreement(run), config),
        "experts": lambda: tables.expert_table(metrics, config, inputs.training_logs(run, config)),
        "merging": lambda: tables.merging_table(inputs.curves(run, config)),
        "attacks": lambda: attack_tables.attack_table(metrics, config, tested),
        "attack-costs": lambda: attack_tables.cost_table(inputs.attacks(run, config), config),
        "prompts": lambda: tables.prompts_table(*inputs.pairs(run, config)),
    }
    by = {"merging": [judges.acting], "attack-costs": [judges.acting], "prompts": []}
    by |= dict.fromkeys(("verdicts", "agreement"), judges.verdicts)
    written, cells = {name: make[name]() for name in contents(config).tables}, judged_cells(config)
    for name, table in written.items():
        if verdicts := by.get(name, [judges.headline]):
            table.note += f"\n{judge_tables.foot(verdicts, inputs.judges(run), metrics, cells.get(name, ()))}"
        table.write(run / "tables")
    return written


def write_figures(run: Path, config: Config) -> dict[str, Path]:
    """figures/<name>.svg; returns them by name."""
    metrics = inputs.metrics(run)

    def tradeoff(path: Path) -> None:
        best = recommended(metrics, config)
        kept = what_is_kept(inputs.differences(run), best, config) or Kept("clip_score", "")
        curves = inputs.curves(run, config) if "merging" in contents(config).plots else {}
        figures.tradeoff(trade_off(metrics, kept, config), kept.metric, curves, best, path)

    def categories(path: Path) -> None:
        unsafe = config.first_benchmark("unsafe") or ""
        names = shown_categories(config, metrics[metrics.benchmark == unsafe].category)
        figures.categories(metrics, unsafe, names, compared(config), path)

    def merging(path: Path) -> None:
        base = inputs.base_point(metrics, config, inputs.retained(run, config))
        figures.merging(inputs.curves(run, config), base, path)

    def thresholds(path: Path) -> None:
        shares, marks = inputs.over_thresholds(run, config)
        figures.thresholds(shares, compared(config), marks, path)

    def coactivation(path: Path) -> None:
        figures.coactivation(read_parquet(run / "merged/co-merge/coactivation.parquet"), path)

    draw: dict[str, Callable[[Path], None]] = {
        "tradeoff": tradeoff,
        "categories": categories,
        "thresholds": thresholds,
        "merging": merging,
        "coactivation": coactivation,
        "similarity": lambda path: figures.similarity(inputs.cosines(run, config), config.prompts.min_similarity, path),
        "attacks": lambda path: figures.attacks(inputs.attacks(run, config), config.attacks.rounds, path),
        "training": lambda path: figures.training(inputs.training_logs(run, config), path),
    }
    written = {name: run / f"figures/{name}.svg" for name in contents(config).plots}
    for name, path in written.items():
        draw[name](path)
    return written


def _inline(name: str, path: Path) -> str:
    """An SVG to stand in a page with others: no XML header, ids of its own."""
    svg = path.read_text(encoding="utf-8")
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg[svg.index("<svg") :])


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def write_report(run: Path | str, config: Config, out: Path | str) -> None:
    """Write tables/, figures/ and the page `out`, which needs no other file."""
    run = Path(run)
    metrics = inputs.metrics(run)
    there = {column.metric for column in tables.main_columns(metrics, config)} & set(metrics.metric)
    disagreement = write_disagreement(run, config)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("safetydpo.report", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html").render(
        run=config.run,
        audit=not config.trains,
        decision=headline(run, config),
        tables=write_tables(run, config),
        plots={name: _inline(name, path) for name, path in write_figures(run, config).items()},
        grids={name: (_data_uri(grid.path), grid.prompts) for name, grid in write_grids(run, config).items()},
        blur=config.blurs,
        disagreement=disagreement and (_data_uri(disagreement.path), disagreement.prompts),
        meanings=[(m.label, m.meaning) for metric, m in MEASURES.items() if metric in there],
        config=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        models={"model": read_json(run / "model.json"), **inputs.externals(run, config)},
        versions={name: version(name) for name in (*LIBRARIES, "snakemake")},
    )
    write_text(page, out)


def write_ablation(
    study: str,
    scores: dict[tuple[str, str], str],
    kinds: dict[str, str],
    verdict: Verdict,
    judges: Path | str,
    resamples: int,
    seed: int,
    folder: Path,
) -> None:
    """Write the table of an ablation, tables/ablation-<study>.*, from the scores of its cells (method, benchmark).

    verdict: that of IP; judges: judges.json.
    """
    rows = []
    for (method, benchmark), path in scores.items():
        found = summarise(read_scores(path), [verdict], resamples, seed)
        rows += [{"method": method, "benchmark": benchmark, **row} for row in found]
    methods, benchmarks = (list(dict.fromkeys(names)) for names in zip(*scores, strict=True))
    metrics = pd.DataFrame(rows)
    columns = [column for b in benchmarks for column in shown_columns(b, kinds[b], metrics)]
    note = "Each at the LoRA scale that tuning chose."
    table = build(f"ablation-{study}", f"Ablation: {study}", note, metrics, methods, columns)
    cells = [(method, benchmark, "all") for method, benchmark in scores if "ip" in SHOWN[kinds[benchmark]]]
    table.note += f"\n{judge_tables.foot([verdict], read_json(judges)['judges'], metrics, cells)}"
    table.write(folder)
