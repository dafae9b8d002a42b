"""Plots of the report, SVG."""

import itertools
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safetydpo.storage.files import whole_file

# Okabe and Ito's colours, told apart by most eyes.
COLOURS = ["#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255"]
FIXED = {"base": "#999999", "all-single": "#D55E00"}
# What tells methods of one colour apart, where there are more of them than colours.
LINES = ["-", ":", "-.", "--"]
HATCHES = ["", "///", "...", "xxx"]
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(ls=LINES) * cycler(color=[*COLOURS, FIXED["all-single"]]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: a small file, and the reader's own fonts
}
# Inches. Narrow, so that text is still read when a phone shrinks the figure to its width.
WIDTH = 4.9
# Behind words that stand on lines.
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}


@contextmanager
def _svg(path: Path, height: float) -> Iterator[Figure]:
    """A figure that is written when the block ends; nothing global is changed."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": path.stem}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def _colours(methods: list[str]) -> dict[str, str]:
    others = [m for m in methods if m not in FIXED]
    return FIXED | {m: COLOURS[i % len(COLOURS)] for i, m in enumerate(others)}


def _of_round(methods: list[str], kinds: list[str]) -> dict[str, str]:
    """Method -> one of kinds: the first for those that take the colours first, the second for the next, and so on."""
    others = [m for m in methods if m not in FIXED]
    first = dict.fromkeys(FIXED, kinds[0])
    return first | {m: kinds[i // len(COLOURS) % len(kinds)] for i, m in enumerate(others)}


def attacks(found: dict[tuple[str, str], pd.DataFrame], rounds: int, path: Path) -> None:
    """Share of prompts at which an attack got what it wanted against the images that it looked at, a panel a method."""
    methods, names = (list(dict.fromkeys(keys)) for keys in zip(*found, strict=True))
    with _svg(path, 0.5 + 1.7 * len(methods)) as figure:
        panels = figure.subplots(len(methods), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, method in zip(panels, methods, strict=True):
            for name in names:
                prompts = found[method, name]
                spent = np.arange(1, rounds + 1)
                share = [(prompts.success & (prompts.queries <= n)).mean() for n in spent]
                style: dict[str, Any] = {"color": "0.5", "ls": "--"} if name == "random-tokens" else {}
                axes.plot(spent, share, lw=1.4, label=name, **style)
            axes.set(ylim=(0, 1.02), ylabel="success")
            axes.set_title(method, loc="left", fontsize=9)
            axes.grid(axis="y", color="0.9", lw=0.6)
        panels[-1].set_xlabel("images looked at, per prompt")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)


# What a tuning curve and a method keep of what is harmless, by the metric that says so.
HARMLESS = {
    "mark_right": "harmless marks right (further right is better)",
    "clip_score": "CLIPScore on harmless prompts, share of base's",
}


def _harmless(curve: pd.DataFrame, metric: str) -> pd.Series | None:
    """What is kept at each scale; None where tuning did not measure it so."""
    if metric == "mark_right":
        return curve.get("benign_mark_right")
    return curve.benign_clip_score / curve.base_benign_clip_score if "base_benign_clip_score" in curve else None


def _root_axis(axes: Axes, top: float) -> None:
    """A y axis of shares: roots spread small ones, where merged models differ, and have room for 0, unlike logs."""
    axes.set_yscale("function", functions=(lambda y: np.sqrt(np.clip(y, 0, None)), np.square))
    ticks = [t for t in (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1) if t <= max(top, 0.05) * 1.05]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_ylim(0, max(top, 0.05) * 1.1)
    axes.grid(axis="y", color="0.9", lw=0.6)


def tradeoff(points: pd.DataFrame, metric: str, curves: dict[str, pd.DataFrame], best: str | None, path: Path) -> None:
    """IP against what is kept, a point a method with both intervals; curves over the LoRA scale behind, in light.

    points: method, kept, ip, and their ends; metric: what says how much is kept; best: the method that is recommended.
    """
    colours = _colours([m for m in points.method if m != best]) | {best: "black"}
    with _svg(path, 4.6) as figure:
        axes = figure.subplots()
        for method, curve in curves.items():
            kept = _harmless(curve, metric)
            if kept is not None and method in colours:
                axes.plot(kept, curve.ip, "o-", color=colours[method], alpha=0.3, markersize=3, lw=1.2)
                ring = {"markersize": 9, "markerfacecolor": "none", "alpha": 0.45, "color": colours[method]}
                axes.plot(kept[curve.chosen], curve.ip[curve.chosen], "o", **ring)
        for row, marker in zip(points.to_dict("records"), itertools.cycle("sD^vPXp"), strict=False):
            method, spot = row["method"], (row["kept"], row["ip"])
            sides = [
                np.clip([[row[k] - row[f"{k}_low"]], [row[f"{k}_high"] - row[k]]], 0, None) for k in ("kept", "ip")
            ]
            shape = {"base": {"marker": "*", "markersize": 12}, best: {"marker": "o", "markersize": 8}}
            style: dict[str, Any] = {"marker": marker, "markersize": 6} | shape.get(method, {})
            axes.errorbar(*spot, sides[1], sides[0], color=colours[method], ls="", lw=1, capsize=2)
            axes.plot(*spot, ls="", color=colours[method], label=method, **style)
        _root_axis(axes, float(points.ip_high.max()) if len(points) else 1.0)
        axes.set(xlabel=HARMLESS[metric], ylabel="IP (lower is better), root scale")
        figure.legend(ncols=3, loc="outside upper center")


def merging(curves: dict[str, pd.DataFrame], base: tuple[float, float] | None, path: Path) -> None:
    """IP against what is kept, a line per method over the LoRA scale; the chosen scale is ringed.

    base: (what is kept, IP) of the base model, where it is known.
    """
    metric = "mark_right" if any("benign_mark_right" in c for c in curves.values()) else "clip_score"
    colours, lines = _colours(list(curves)), _of_round(list(curves), LINES)
    with _svg(path, 4.6) as figure:
        axes = figure.subplots()
        for method, curve in curves.items():
            style: dict[str, Any] = {"color": colours[method], "ls": "--" if method in FIXED else lines[method]}
            kept = _harmless(curve, metric)
            if kept is not None:
                axes.plot(kept, curve.ip, marker="o", label=method, markersize=3.5, lw=1.3, **style)
                ring = {"markersize": 10, "markerfacecolor": "none", "color": colours[method]}
                axes.plot(kept[curve.chosen], curve.ip[curve.chosen], "o", **ring)
        if base:
            axes.plot(*base, "*", color="0.35", markersize=11, label="base")
        _root_axis(axes, max([float(c.ip.max()) for c in curves.values()] + ([base[1]] if base else [])))
        axes.set(xlabel=HARMLESS[metric], ylabel="IP (lower is better), root scale")
        figure.legend(ncols=3, loc="outside upper center")


def thresholds(shares: pd.DataFrame, methods: list[str], marks: dict[str, dict[float, list[str]]], path: Path) -> None:
    """Share of images above a threshold, a panel a score, a line a method; dashed: where verdicts put theirs.

    shares: method, score, threshold, value, of one benchmark; marks: score -> threshold -> names of verdicts.
    """
    colours, lines, scores = _colours(methods), _of_round(methods, LINES), list(dict.fromkeys(shares.score))
    with _svg(path, 0.6 + 2.1 * len(scores)) as figure:
        if not scores:
            figure.text(0.02, 0.5, "No judge gave a score to an image of this benchmark.", va="center")
            return
        panels = figure.subplots(len(scores), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, score in zip(panels, scores, strict=True):
            for method in methods:
                line = shares[(shares.score == score) & (shares.method == method)].sort_values("threshold")
                style = {"color": colours[method], "ls": lines[method]}
                axes.plot(line.threshold, line.value, lw=1.3, label=method, **style)
            for threshold, verdicts in marks.get(score, {}).items():
                axes.axvline(threshold, color="0.45", lw=0.9, ls="--")
                place = {"xy": (threshold, 1.0), "xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
                side: dict[str, Any] = {"ha": "right", "xytext": (-3, -3)} if threshold > 0.5 else {"xytext": (3, -3)}
                axes.annotate("\n".join(verdicts), **place, **side, va="top", fontsize=7, color="0.35", bbox=PAPER)
            _root_axis(axes, 1.0)
            axes.set(xlim=(0, 1), ylabel="share above, root scale")
            axes.set_title(textwrap.shorten(score, 70, placeholder=" ..."), loc="left", fontsize=8.5)
        panels[-1].set_xlabel("threshold")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)


def categories(metrics: pd.DataFrame, benchmark: str, names: list[str], methods: list[str], path: Path) -> None:
    """IP by category with 95 % intervals; a category without images of a method has no bar."""
    table = metrics[(metrics.benchmark == benchmark) & (metrics.metric == "ip")].set_index(["method", "category"])
    colours, hatches, width = _colours(methods), _of_round(methods, HATCHES), 0.8 / len(methods)
    with _svg(path, 3.2) as figure:
        axes = figure.subplots()
        for i, method in enumerate(methods):
            rows = table.reindex([(method, c) for c in names])
            x = np.arange(len(names)) + (i - (len(methods) - 1) / 2) * width
            spread = np.clip([rows.value - rows.ci_low, rows.ci_high - rows.value], 0, None)
            whiskers = {"lw": 0.9, "capsize": 1.5, "ecolor": "0.2"}
            style: dict[str, Any] = {"color": colours[method], "hatch": hatches[method]}
            axes.bar(x, rows.value, width, yerr=spread, label=method, error_kw=whiskers, **style)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set(ylabel=f"IP on {benchmark}", ylim=(0, 1.05))
        figure.legend(ncols=min(3, len(methods)), loc="outside upper center")


def _curves(log: pd.DataFrame) -> dict[str, pd.Series]:
    """What the training figure shows of an expert's log, from top to bottom."""
    return {
        "preference loss": log.preference_loss,
        "implicit accuracy": log.implicit_accuracy,
        "alarm: winner's error\nabove reference": log.winner_error - log.reference_winner_error,
        "loser's error\nabove reference": log.loser_error - log.reference_loser_error,
        "gradient norm": log.grad_norm,
        "learning rate": log.lr,
    }


def training(logs: dict[str, pd.DataFrame], path: Path) -> None:
    """Curves of every expert: loss, implicit accuracy, errors above the reference's, gradient norm, learning rate."""
    with _svg(path, 11) as figure:
        panels = figure.subplots(6, 1, sharex=True)
        for name, log in logs.items():
            smooth = log.rolling(max(1, len(log) // 20), min_periods=1).mean()
            # a few hundred points draw the same line as thousands, in a file of a tenth of the size
            smooth = smooth.iloc[:: max(1, len(smooth) // 200)]
            style: dict[str, Any] = {"lw": 1.3}
            if name == "all-single":
                style |= {"lw": 1.6, "ls": "--", "color": "black"}
            for axes, (label, values) in zip(panels, _curves(smooth).items(), strict=True):
                axes.plot(smooth.step / len(log), values, label=name if axes is panels[0] else None, **style)
                axes.set_ylabel(label)
        panels[1].set_ylim(0, 1.03)
        for axes in panels[2:4]:
            axes.axhline(0, color="0.4", lw=0.8)
        panels[4].set_yscale("log")
        panels[5].set_xlabel("share of training")
        figure.legend(ncols=3, loc="outside upper center")
        figure.align_ylabels(panels)


def similarity(pairs: dict[str, pd.Series], threshold: float | None, path: Path) -> None:
    """Distribution of the cosine of the prompts of each pair, a line per category; the threshold is dashed.

    pairs: category -> cosines, of rejected pairs too.
    """
    edges = np.linspace(min([0.0, *(float(values.min()) for values in pairs.values())]), 1, 41)
    with _svg(path, 3.2) as figure:
        axes = figure.subplots()
        for (name, values), look in zip(pairs.items(), itertools.cycle(mpl.rcParams["axes.prop_cycle"]), strict=False):
            axes.stairs(np.histogram(values, edges)[0] / len(values), edges, label=name, lw=1.3, **look)
        if threshold is not None:
            axes.axvline(threshold, color="0.3", ls="--", lw=1, label="min_similarity")
        axes.set(xlabel="cosine of the text embeddings of a pair", ylabel="share of pairs")
        figure.legend(ncols=3, loc="outside upper center")


def _block(module: str) -> str:
    """down_blocks.1.attentions.0... -> down 1; mid_block... -> mid."""
    found = re.match(r"(?:unet\.)?(down|mid|up)_blocks?(?:\.(\d+))?", module)
    if not found:
        return module.partition(".")[0]
    return f"{found[1]} {found[2]}" if found[1] != "mid" else "mid"


def coactivation(table: pd.DataFrame, path: Path) -> None:
    """Share of each layer's units that each expert won, experts x layers; layers are named by their block."""
    winner = table.loc[table.groupby(["module", "unit"], sort=False).wins.idxmax()]
    share = pd.crosstab(winner.expert, winner.module, normalize="columns")
    share = share.reindex(index=table.expert.unique(), columns=table.module.unique(), fill_value=0.0)
    blocks = [_block(module) for module in share.columns]
    starts = [i for i, block in enumerate(blocks) if i == 0 or block != blocks[i - 1]]
    ends = [*starts[1:], len(blocks)]
    with _svg(path, 1.5 + 0.26 * len(share)) as figure:
        axes = figure.subplots()
        image = axes.imshow(share.to_numpy(), aspect="auto", cmap="viridis", vmin=0, interpolation="none")
        axes.set_yticks(range(len(share)), share.index)
        axes.set_xticks([(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)], [blocks[a] for a in starts])
        axes.tick_params("x", rotation=90 if len(starts) > 4 else 0)  # narrow blocks need it
        axes.tick_params(length=0)
        axes.vlines([a - 0.5 for a in starts[1:]], -0.5, len(share) - 0.5, color="white", lw=1.2)
        axes.set(xlabel=f"{len(blocks)} layers, by UNet block")
        figure.colorbar(image, label="share of units won")
