"""Figures of the report: SVG plots and PNG grids of renders."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

from safetydpo.files import whole_file
from safetydpo.images import unpng

mpl.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, told apart by most eyes.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000"]
plt.rcParams.update(
    {
        "axes.prop_cycle": mpl.cycler(color=COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "font.size": 11,
        "legend.frameon": False,
        "svg.hashsalt": "safetydpo",
    }
)


def _save(figure: plt.Figure, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)


def merging(curves: dict[str, pd.DataFrame], path: Path) -> None:
    """IP against benign accuracy, a line per method over the LoRA scale; the chosen scale is ringed."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4))
    kept = "benign_mark_right" if any("benign_mark_right" in c for c in curves.values()) else "benign_clip_score"
    for i, (method, curve) in enumerate(curves.items()):
        axes.plot(curve[kept], curve.ip, "o-", label=method, color=COLOURS[i % len(COLOURS)], markersize=4)
        chosen = curve[curve.chosen]
        axes.plot(chosen[kept], chosen.ip, "o", markersize=11, markerfacecolor="none", color=COLOURS[i % len(COLOURS)])
        for row in curve.to_dict("records"):
            axes.annotate(
                f"{row['scale']:g}", (row[kept], row["ip"]), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
    words = {
        "benign_mark_right": "benign mark right (further right is better)",
        "benign_clip_score": "CLIPScore, benign",
    }
    axes.set(xlabel=words[kept], ylabel="IP on unsafe tuning prompts (lower is better)")
    axes.legend(fontsize=9)
    _save(figure, path)


def categories(metrics: pd.DataFrame, benchmark: str, names: list[str], methods: list[str], path: Path) -> None:
    """IP by category with 95 % intervals."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    table = metrics[(metrics.benchmark == benchmark) & (metrics.metric == "ip")].set_index(["method", "category"])
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        rows = table.loc[[(method, c) for c in names]]
        x = np.arange(len(names)) + (i - (len(methods) - 1) / 2) * width
        spread = np.clip([rows.value - rows.ci_low, rows.ci_high - rows.value], 0, None)
        axes.bar(x, rows.value, width, yerr=spread, label=method, color=COLOURS[i], error_kw={"lw": 0.8})
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set(ylabel=f"IP on {benchmark}", ylim=(0, 1.05))
    axes.legend(fontsize=9, ncols=len(methods), loc="lower center", bbox_to_anchor=(0.5, 1))
    _save(figure, path)


def training(logs: dict[str, pd.DataFrame], path: Path) -> None:
    """Curves of every expert: loss, implicit accuracy, and the winner's error above the reference's."""
    figure, panels = plt.subplots(3, 1, figsize=(6.4, 7), sharex=True)
    for name, log in logs.items():
        smooth = log.rolling(max(1, len(log) // 20), min_periods=1).mean()
        style = {"label": name, "lw": 1.2, "ls": "--" if name == "all-single" else "-"}
        panels[0].plot(smooth.step / len(log), smooth.dpo_loss, **style)
        panels[1].plot(smooth.step / len(log), smooth.implicit_accuracy, **style)
        panels[2].plot(smooth.step / len(log), smooth.winner_error - smooth.reference_winner_error, **style)
    panels[0].set(ylabel="DPO loss")
    panels[1].set(ylabel="implicit accuracy", ylim=(0, 1.03))
    panels[2].axhline(0, color="0.6", lw=0.8)
    panels[2].set(ylabel="winner's error\nabove reference", xlabel="share of training")
    panels[0].legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    _save(figure, path)


def coactivation(table: pd.DataFrame, path: Path) -> None:
    """Share of each layer's units that each expert won, experts x layers."""
    winner = table.loc[table.groupby(["module", "unit"], sort=False).wins.idxmax()]
    grid = pd.crosstab(winner.expert, winner.module, normalize="columns")
    grid = grid.reindex(index=table.expert.unique(), columns=table.module.unique(), fill_value=0.0)
    short = [
        m.replace("_blocks.", "").replace("transformer_blocks.", "").replace(".attentions", "") for m in grid.columns
    ]
    figure, axes = plt.subplots(figsize=(6.4, 1.6 + 0.3 * len(grid)))
    image = axes.imshow(grid.to_numpy(), aspect="auto", cmap="viridis", vmin=0)
    axes.set_yticks(range(len(grid)), grid.index)
    step = max(1, len(short) // 16)
    axes.set_xticks(range(0, len(short), step), short[::step], rotation=90, fontsize=6)
    figure.colorbar(image, label="share of units won")
    _save(figure, path)


def _hidden(image: Image.Image) -> Image.Image:
    """Blurred past recognition."""
    small = image.resize((4, 4), Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BICUBIC)
    return small.filter(ImageFilter.GaussianBlur(image.width / 12))


def grid(rows: dict[str, list[tuple[dict, bool]]], blur: bool, path: Path) -> None:
    """Methods x prompts, same seed down a column; images that judges flagged are blurred when `blur`.

    rows: method -> (image cell, flagged) in the order of the prompts.
    """
    size = Image.fromarray(unpng(next(iter(rows.values()))[0][0])).width
    scale, gap, left = (3 if size <= 64 else 1), 4, 140
    step = size * scale + gap
    count = max(len(cells) for cells in rows.values())
    sheet = Image.new("RGB", (left + count * step, len(rows) * step), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (method, cells) in enumerate(rows.items()):
        pen.text((6, y * step + step // 2 - 6), method, fill="black", font_size=14)
        for x, (cell, flagged) in enumerate(cells):
            image = Image.fromarray(unpng(cell)).resize((size * scale,) * 2, Image.Resampling.NEAREST)
            sheet.paste(_hidden(image) if blur and flagged else image, (left + x * step, y * step))
    with whole_file(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)
