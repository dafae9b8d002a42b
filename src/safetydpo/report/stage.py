"""Stage 7: tables, figures and one self-contained page for people to read."""

import base64
import itertools
import json
import re
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import yaml

from safetydpo.config.loading import read_config
from safetydpo.config.run import Config
from safetydpo.errors import SafetyDPOError
from safetydpo.report import attack_tables, figures, tables
from safetydpo.report.tables import Table
from safetydpo.storage.files import LIBRARIES, read_parquet, write_text

# metric -> its words in the tables, and what it says
MEANINGS = {
    "ip": ("IP", "share of images that the judges (Q16, or the detector) call inappropriate"),
    "attributes": ("attributes right", "colour, shape and field of the prompt seen in the image: should not suffer"),
    "benign_mark": ("benign mark instead", "a harmless mark drawn where an unsafe one was asked for"),
    "ssim_base": (
        "layout SSIM",
        "similarity to base's image of the same prompt and seed, on the half without the mark",
    ),
    "clip_score": ("CLIPScore", "100 x cosine of image and prompt embeddings"),
    "clip_score_change": ("CLIPScore change", "paired difference from the base model, same prompts and seeds"),
    "any_mark": ("marks", "safe prompts, which ask for no mark, whose image shows one"),
    "fid": ("FID", "distance to base's images on other seeds; base's own is what seeds alone make"),
    "kid": (
        "KID",
        "the same with a kernel, less biased on few images; below 0 where sets of the same prompts are alike",
    ),
    "cmmd": ("CMMD", "the same between CLIP embeddings, x 1000"),
    "mark_right": ("mark right", "prompts for a harmless mark that get it; over-erasure shows here"),
}
TERMINAL = 100


class Grid(NamedTuple):
    """An image grid of the page: its file, and the prompts of its columns."""

    path: Path
    prompts: list[str]


def _curves(run: Path, config: Config) -> dict[str, pd.DataFrame]:
    names = ["all-single", *(f"merged-{s}" for s in config.merge.strategies)]
    paths = {name: run / f"tuning/{name}.parquet" for name in names}
    found = {name: read_parquet(path) for name, path in paths.items() if path.exists()}
    return {name: curve for name, curve in found.items() if "ip" in curve}


def _training_logs(run: Path, config: Config) -> dict[str, pd.DataFrame]:
    paths = {name: run / f"experts/{name}/training.parquet" for name in [*config.category_names, "all-single"]}
    return {name: read_parquet(path) for name, path in paths.items() if path.exists()}


def _retained(run: Path, config: Config) -> set[str]:
    """Benign kinds that the preservation term saw."""
    path = run / "retain/prompts.parquet"
    if not config.train.preserve.weight or not path.exists():
        return set()
    rows = read_parquet(path, ["category", "kind"])
    return set(rows[rows.kind == "benign"].category)


def _attacks(run: Path, config: Config) -> attack_tables.Found:
    """The prompts of each attack that has more than one try, by method and attack."""
    cells = itertools.product(config.attacks.methods, config.attacks.run)
    return {(m, name): read_parquet(run / f"attacks/{name}/{m}.parquet") for m, name in cells}


def _pairs(run: Path, config: Config) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Prompt pairs and rejected ones, by category."""
    kept, rejected = (
        {name: read_parquet(run / f"{folder}/{name}.parquet") for name in config.category_names}
        for folder in ("prompts", "rejected")
    )
    return kept, rejected


def _cosines(run: Path, config: Config) -> dict[str, pd.Series]:
    """Cosines of the pairs of each category, rejected ones too, where they were measured."""
    kept, rejected = _pairs(run, config)
    both = {name: pd.concat([kept[name].similarity, rejected[name].similarity]).dropna() for name in kept}
    return {name: values for name, values in both.items() if len(values)}


def _base_point(metrics: pd.DataFrame, config: Config, retained: set[str]) -> tuple[float, float] | None:
    """Base's accuracy on retained benign kinds, which tuning prompts are of too, and its IP; None if not measured."""
    unsafe, benign = (tables.first_benchmark(config, kind) for kind in ("unsafe", "benign"))
    base = metrics[metrics.method == "base"]
    ip = base[(base.benchmark == unsafe) & (base.metric == "ip") & (base.category == "all")]
    kept = base[(base.benchmark == benign) & (base.metric == "mark_right") & base.category.isin(retained)]
    return (
        (float((kept.value * kept.n).sum() / kept.n.sum()), float(ip.value.iloc[0])) if len(ip) and len(kept) else None
    )


def _renders(run: Path, config: Config, method: str, benchmark: str) -> pd.DataFrame:
    """prompt_id -> prompt, category, image, flagged."""
    paths = [run / f"images/{method}/{benchmark}/{shard}.parquet" for shard in range(config.evaluate.shards)]
    images = pd.concat([read_parquet(path) for path in paths]).set_index("prompt_id")
    scores = read_parquet(run / f"scores/{method}/{benchmark}.parquet", ["prompt_id", "flagged"])
    return images[["prompt", "category", "image"]].join(scores.set_index("prompt_id"))


def write_grids(run: Path, config: Config) -> dict[str, Grid]:
    """figures/grid-<benchmark>.png of every benchmark that base is on: the first prompts, spread over categories."""
    shown = {}
    for benchmark in [b.name for b in config.benchmarks]:
        methods = [m for m in tables.merged_methods(config) if m != "base-reseed" and (m, benchmark) in config.cells()]
        if "base" not in methods:
            continue
        renders = {m: _renders(run, config, m, benchmark) for m in methods}
        base = renders["base"]
        for other in renders.values():  # methods may see fewer prompts
            base = base[base.index.isin(other.index)]
        turn = base.groupby("category").cumcount().sort_values(kind="stable")
        keys = list(turn.index[: config.report.scenes])
        rows = {m: [(r.image[k], bool(r.flagged[k])) for k in keys] for m, r in renders.items()}
        shown[benchmark] = Grid(run / f"figures/grid-{benchmark}.png", list(base.prompt[keys]))
        figures.grid(rows, config.report.blur, shown[benchmark].path)
    return shown


def write_tables(run: Path, config: Config) -> dict[str, Table]:
    """tables/<name>.parquet, .csv, .md; returns them by name, in reading order."""
    metrics = read_parquet(run / "metrics.parquet")
    found = [
        tables.main_table(metrics, config, _retained(run, config)),
        tables.dataset_table(metrics, config),
        tables.category_table(metrics, config),
        tables.expert_table(metrics, config, _training_logs(run, config)),
        tables.merging_table(_curves(run, config)),
        attack_tables.attack_table(metrics, config),
        attack_tables.cost_table(_attacks(run, config), config),
        tables.prompts_table(*_pairs(run, config)),
    ]
    written = {table.name: table for table in found if table is not None}
    for table in written.values():
        table.write(run / "tables")
    return written


def write_figures(run: Path, config: Config) -> dict[str, Path]:
    """figures/*.svg, each where its inputs exist; returns them by name."""
    metrics, written = read_parquet(run / "metrics.parquet"), {}

    def path(name: str) -> Path:
        return written.setdefault(name, run / f"figures/{name}.svg")

    unsafe = tables.first_benchmark(config, "unsafe")
    if unsafe and (methods := tables.compared(config)):
        figures.categories(metrics, unsafe, config.category_names, methods, path("categories"))
    if curves := _curves(run, config):
        figures.merging(curves, _base_point(metrics, config, _retained(run, config)), path("merging"))
    if found := _attacks(run, config):
        figures.attacks(found, config.attacks.rounds, path("attacks"))
    if logs := _training_logs(run, config):
        figures.training(logs, path("training"))
    if config.prompts.needs_encoder and (cosines := _cosines(run, config)):
        figures.similarity(cosines, config.prompts.min_similarity, path("similarity"))
    wins = run / "merged/co-merge/coactivation.parquet"
    if "co-merge" in config.merge.strategies and wins.exists():
        figures.coactivation(read_parquet(wins), path("coactivation"))
    return written


def headline(run: Path, config: Config) -> str:
    """The result in a sentence: IP of base and of the first aligned model, on the first unsafe benchmark."""
    metrics = read_parquet(run / "metrics.parquet")
    benchmark = tables.first_benchmark(config, "unsafe")
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


def _inline(name: str, path: Path) -> str:
    """An SVG to stand in a page with others: no XML header, ids of its own."""
    svg = path.read_text(encoding="utf-8")
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg[svg.index("<svg") :])


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def write_report(run: Path | str, config: Config, out: Path | str) -> None:
    """Write tables/, figures/ and the page `out`, which needs no other file."""
    run = Path(run)
    metrics = set(read_parquet(run / "metrics.parquet", ["metric"]).metric)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("safetydpo.report", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html").render(
        run=config.run,
        headline=headline(run, config),
        tables=write_tables(run, config),
        plots={name: _inline(name, path) for name, path in write_figures(run, config).items()},
        grids={name: (_data_uri(grid.path), grid.prompts) for name, grid in write_grids(run, config).items()},
        blur=config.report.blur,
        meanings=[words for metric, words in MEANINGS.items() if metric in metrics],
        config=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        model=json.loads((run / "model.json").read_text(encoding="utf-8")),
        versions={name: version(name) for name in (*LIBRARIES, "snakemake")},
    )
    write_text(page, out)


def _plain(table: Table) -> list[str]:
    """Values without intervals: a line per metric, a column per method, in blocks that fit the terminal."""
    turned = table.turned()
    first = max(len(row[0].text) for row in turned.cells)
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
    table = tables.main_table(read_parquet(run / "metrics.parquet"), config, _retained(run, config))
    said = textwrap.fill(headline(run, config), TERMINAL)
    note = textwrap.fill(table.note.replace("Best bold, second underlined. 95 %", "The report has 95 %"), TERMINAL)
    return "\n".join([said, "", *_plain(table), note, f"Report: {(run / 'report.html').resolve()}"])


def over_seeds(runs: list[Path]) -> str:
    """Main table, IP by category and attacks of runs that differ in their seed, as Markdown: mean [lowest, highest]."""
    for run in runs:
        if not (run / "metrics.parquet").exists():
            raise SafetyDPOError(f"{run} has no metrics.parquet: run snakemake first.")
    config = read_config(runs[0] / "config.yaml")
    every = pd.concat([read_parquet(run / "metrics.parquet") for run in runs], ignore_index=True)
    seeds = sorted(every.seed.unique())
    if len(seeds) < len(runs):
        raise SafetyDPOError(
            f"{len(runs)} runs have the seeds {', '.join(map(str, seeds))}: give each a seed of its own."
        )
    groups = every.groupby(["method", "benchmark", "category", "metric"], sort=False)
    means = groups.agg(value=("value", "mean"), ci_low=("value", "min"), ci_high=("value", "max"), n=("n", "max"))
    metrics = means[groups.size() == len(runs)].reset_index()
    found = [
        tables.main_table(metrics, config, _retained(runs[0], config)),
        tables.category_table(metrics, config),
        attack_tables.attack_table(metrics, config),
    ]
    for table in filter(None, found):
        table.note = f"Mean over the seeds {', '.join(map(str, seeds))} [lowest, highest]; n is of one seed."
    attacks = [_attacks(run, config) for run in runs]
    together = {key: pd.concat([prompts[key] for prompts in attacks]) for key in attacks[0]}
    costs = attack_tables.cost_table(together, config)
    return "\n".join([*(table.turned().markdown() for table in found if table), costs.markdown() if costs else ""])
