"""Stage 7: tables, figures and one self-contained page for people to read."""

import base64
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from safetydpo import figures, tables
from safetydpo.config import Config, read_config
from safetydpo.errors import SafetyDPOError
from safetydpo.files import LIBRARIES, read_parquet, write_text
from safetydpo.tables import Table

MEANINGS = {
    "IP": "share of images that the judges (Q16, or the detector) call inappropriate",
    "attributes right": "colour, shape and field of the prompt found in the image: what alignment should not touch",
    "benign mark instead": "a harmless mark drawn where an unsafe one was asked for",
    "mark right": "prompts that ask for a harmless mark and get it: over-erasure shows here",
    "marks": "safe prompts whose image shows any mark",
    "layout SSIM": "similarity to the base model's image of the same prompt and seed, on the half without the mark",
    "CLIPScore": "100 x cosine of image and prompt embeddings; `change`: paired difference to the base model",
    "FID, KID": "distance to the base model's images on other seeds; base itself shows the distance that seeds make",
}


def _curves(run: Path, config: Config) -> dict[str, pd.DataFrame]:
    names = ["all-single", *(f"merged-{s}" for s in config.merge.strategies)]
    paths = {name: run / f"tuning/{name}.parquet" for name in names}
    found = {name: read_parquet(path) for name, path in paths.items() if path.exists()}
    return {name: curve for name, curve in found.items() if "ip" in curve}


def _training_logs(run: Path, config: Config) -> dict[str, pd.DataFrame]:
    paths = {name: run / f"experts/{name}/training.parquet" for name in [*config.category_names, "all-single"]}
    return {name: read_parquet(path) for name, path in paths.items() if path.exists()}


def _timings(run: Path, config: Config) -> dict[str, float]:
    paths = {c: run / f"timings/train_expert/{c}.tsv" for c in config.category_names}
    return {c: float(pd.read_csv(path, sep="\t").s.iloc[0]) for c, path in paths.items() if path.exists()}


def write_grids(run: Path, config: Config) -> dict[str, list[str]]:
    """figures/grid-<benchmark>.png of every benchmark; returns the prompts of each, left to right."""
    shown = {}
    for benchmark in [b.name for b in config.benchmarks]:
        methods = [m for m in tables.merged_methods(config) if m != "base-reseed" and (m, benchmark) in config.cells()]
        if "base" not in methods:
            continue
        rows: dict[str, list[tuple[dict[str, Any], bool]]] = {}
        for method in methods:
            paths = sorted((run / f"images/{method}/{benchmark}").glob("*.parquet"), key=lambda p: int(p.stem))
            images = pd.concat([read_parquet(path) for path in paths]).set_index("prompt_id")
            flagged = read_parquet(run / f"scores/{method}/{benchmark}.parquet").set_index("prompt_id").flagged
            if method == "base":
                chosen = images.groupby("category", sort=False).head(
                    -(-config.report.scenes // images.category.nunique())
                )
                chosen = chosen.head(config.report.scenes)
                shown[benchmark] = list(chosen.prompt)
                keys = list(chosen.index)
            rows[method] = [(images.image[k], bool(flagged[k])) for k in keys if k in images.index]
        figures.grid(rows, config.report.blur, run / f"figures/grid-{benchmark}.png")
    return shown


def write_tables(run: Path, config: Config) -> list[Table]:
    """tables/<name>.parquet, .csv, .md; returns them in reading order."""
    metrics = read_parquet(run / "metrics.parquet")
    found = [
        tables.main_table(metrics, config),
        tables.category_table(metrics, config),
        tables.expert_table(metrics, config, _timings(run, config)),
        tables.merging_table(_curves(run, config)),
    ]
    written = [table for table in found if table is not None]
    for table in written:
        table.write(run / "tables")
    return written


def write_figures(run: Path, config: Config) -> None:
    """figures/*.svg, each where its inputs exist."""
    metrics, folder = read_parquet(run / "metrics.parquet"), run / "figures"
    unsafe = next((b.name for b in config.benchmarks if b.kind == "unsafe"), None)
    methods = [m for m in tables.merged_methods(config) if m != "base-reseed" and (m, unsafe) in config.cells()]
    if unsafe and methods:
        figures.categories(metrics, unsafe, config.category_names, methods, folder / "categories.svg")
    if curves := _curves(run, config):
        figures.merging(curves, folder / "merging.svg")
    if logs := _training_logs(run, config):
        figures.training(logs, folder / "training.svg")
    if (wins := run / "merged/co-merge/coactivation.parquet").exists():
        figures.coactivation(read_parquet(wins), folder / "coactivation.svg")


def headline(run: Path, config: Config) -> str:
    """The result in a sentence: IP of base and of the first aligned model, on the first unsafe benchmark."""
    metrics = read_parquet(run / "metrics.parquet")
    benchmark = next((b.name for b in config.benchmarks if b.kind == "unsafe"), "")
    ip = metrics[(metrics.benchmark == benchmark) & (metrics.category == "all") & (metrics.metric == "ip")]
    rows = {row["method"]: row for row in ip.to_dict("records")}
    best = next((m for m in rows if m.startswith("merged-")), None)
    if best is None or "base" not in rows:
        return ""

    def said(row: dict[str, Any]) -> str:
        return f"{row['value']:.3f} (95 % interval {row['ci_low']:.3f} to {row['ci_high']:.3f})"

    return (
        f"On {rows['base']['n']} unsafe prompts ({benchmark}), the share of inappropriate images goes from "
        f"{said(rows['base'])} to {said(rows[best])} with {best}."
    )


def write_report(run: Path | str, config: Config, out: Path | str) -> None:
    """Write tables/, figures/ and the page `out`, which needs no other file."""
    run = Path(run)
    written = {table.name: table for table in write_tables(run, config)}
    write_figures(run, config)
    prompts = write_grids(run, config)
    images = {p.stem: base64.b64encode(p.read_bytes()).decode() for p in (run / "figures").glob("*.png")}
    plots = {p.stem: p.read_text()[p.read_text().index("<svg") :] for p in (run / "figures").glob("*.svg")}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("safetydpo", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html").render(
        run=config.run,
        headline=headline(run, config),
        tables=written,
        plots=plots,
        grids={name: (images[f"grid-{name}"], texts) for name, texts in prompts.items()},
        blur=config.report.blur,
        meanings=MEANINGS,
        config=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        model=json.loads((run / "model.json").read_text()),
        versions={name: version(name) for name in (*LIBRARIES, "snakemake")},
    )
    write_text(page, out)


def summary(run: Path | str) -> str:
    """The main results as plain text, and where the report is."""
    run = Path(run)
    if not (run / "metrics.parquet").exists():
        raise SafetyDPOError(f"{run} has no metrics.parquet: run snakemake first.")
    config = read_config(run / "config.yaml")
    table = tables.main_table(read_parquet(run / "metrics.parquet"), config)
    names = [row[0].text for row in table.cells]
    wide = max(map(len, table.head))
    lines = ["".join([" " * wide, *(f"{name:>24}" for name in names)])]
    for i, label in enumerate(table.head[1:], 1):
        lines.append("".join([f"{label:<{wide}}", *(f"{row[i].text:>24}" for row in table.cells)]))
    return "\n".join([headline(run, config), "", *lines, "", table.note, f"Report: {(run / 'report.html').resolve()}"])
