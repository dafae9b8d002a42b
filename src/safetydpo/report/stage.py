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

from safetydpo.config.run import Config
from safetydpo.evaluation.metrics import read_scores, summarise
from safetydpo.report import attack_tables, figures, inputs, tables
from safetydpo.report.contents import compared, contents, first_benchmark, merged_methods, shown_cells
from safetydpo.report.summary import headline
from safetydpo.report.tables import SHOWN, Column, Table, build
from safetydpo.storage.files import LIBRARIES, read_json, read_parquet, write_text

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
        turn = base.groupby("category").cumcount().sort_values(kind="stable")
        keys = list(turn.index[: config.report.scenes])
        rows = {m: [(r.image[k], bool(r.flagged[k])) for k in keys] for m, r in renders.items()}
        shown[benchmark] = Grid(run / f"figures/grid-{benchmark}.png", list(base.prompt[keys]))
        figures.grid(rows, config.report.blur, shown[benchmark].path)
    return shown


def write_tables(run: Path, config: Config) -> dict[str, Table]:
    """tables/<name>.parquet, .csv, .md; returns them by name, in reading order."""
    metrics = inputs.metrics(run)
    make: dict[str, Callable[[], Table]] = {
        "main": lambda: tables.main_table(metrics, config, inputs.retained(run, config)),
        "datasets": lambda: tables.dataset_table(metrics, config),
        "categories": lambda: tables.category_table(metrics, config),
        "experts": lambda: tables.expert_table(metrics, config, inputs.training_logs(run, config)),
        "merging": lambda: tables.merging_table(inputs.curves(run, config)),
        "attacks": lambda: attack_tables.attack_table(metrics, config),
        "attack-costs": lambda: attack_tables.cost_table(inputs.attacks(run, config), config),
        "prompts": lambda: tables.prompts_table(*inputs.pairs(run, config)),
    }
    written = {name: make[name]() for name in contents(config).tables}
    for table in written.values():
        table.write(run / "tables")
    return written


def write_figures(run: Path, config: Config) -> dict[str, Path]:
    """figures/<name>.svg; returns them by name."""
    metrics = inputs.metrics(run)

    def categories(path: Path) -> None:
        unsafe = first_benchmark(config, "unsafe") or ""
        figures.categories(metrics, unsafe, config.category_names, compared(config), path)

    def merging(path: Path) -> None:
        base = inputs.base_point(metrics, config, inputs.retained(run, config))
        figures.merging(inputs.curves(run, config), base, path)

    def coactivation(path: Path) -> None:
        figures.coactivation(read_parquet(run / "merged/co-merge/coactivation.parquet"), path)

    draw: dict[str, Callable[[Path], None]] = {
        "categories": categories,
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
        model=read_json(run / "model.json"),
        versions={name: version(name) for name in (*LIBRARIES, "snakemake")},
    )
    write_text(page, out)


def write_ablation(
    study: str, scores: dict[tuple[str, str], str], kinds: dict[str, str], resamples: int, seed: int, folder: Path
) -> None:
    """Write the table of an ablation, tables/ablation-<study>.*, from the scores of its cells (method, benchmark)."""
    rows = []
    for (method, benchmark), path in scores.items():
        found = summarise(read_scores(path), resamples, seed)
        rows += [{"method": method, "benchmark": benchmark, **row} for row in found]
    methods, benchmarks = (list(dict.fromkeys(names)) for names in zip(*scores, strict=True))
    columns = [
        Column(f"{label} ({b})", b, "all", metric, better, digits)
        for b in benchmarks
        for metric, label, better, digits in SHOWN[kinds[b]]
    ]
    note = "Each at the LoRA scale that tuning chose. Best bold, second underlined."
    build(f"ablation-{study}", f"Ablation: {study}", note, pd.DataFrame(rows), methods, columns).write(folder)
