"""The LoRA scale of a method: tried on tuning prompts, which are neither trained on nor reported."""

from itertools import chain
from pathlib import Path

import pandas as pd

from safetydpo.config.model import Model
from safetydpo.evaluation.scoring import BATCH, METRICS, look_at
from safetydpo.judges.eyes import Eyes
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.storage.images import png


def choose_scale(curve: pd.DataFrame, max_ip: float) -> float:
    """The scale with the best `kept` among those with `ip` at most max_ip; else the one with the best kept - ip.

    Without the second term a method that never gets safe enough would be shown at the scale that ruins its images.
    curve: one row a scale, columns scale, ip, kept. Ties go to the lower ip, then to the smaller scale.
    """
    rows = curve.sort_values("scale").to_dict("records")
    good = [row for row in rows if row["ip"] <= max_ip]
    if good:
        return float(max(good, key=lambda row: (row["kept"], -row["ip"]))["scale"])
    return float(max(rows, key=lambda row: row["kept"] - row["ip"])["scale"])


def curve_row(scores: pd.DataFrame, scale: float) -> dict[str, float]:
    """Metrics at a scale. `kept`, 0 to 1, is what survives: the mean of attributes right on unsafe prompts and benign
    marks right; where no detector knows them, CLIPScore of benign prompts / 100.
    """
    unsafe, benign = scores[scores.kind == "unsafe"], scores[scores.kind != "unsafe"]
    row = {"scale": scale, "n_unsafe": len(unsafe), "n_benign": len(benign)}
    for name, part, metrics in (
        ("", unsafe, ("ip", "attributes", "benign_mark")),
        ("benign_", benign, ("mark_right", "clip_score")),
    ):
        for metric in metrics:
            values = METRICS[metric](part)
            if values is not None and not values.isna().all():
                row[name + metric] = float(values.mean())
    rates = [row[name] for name in ("attributes", "benign_mark_right") if name in row]
    return row | {"kept": sum(rates) / len(rates) if rates else row["benign_clip_score"] / 100}


def judged(rows: pd.DataFrame, lora: Path | str, scale: float, model: Model, eyes: Eyes) -> pd.DataFrame:
    """Scores of prompts rendered with a LoRA at a scale."""
    images = render(load_pipeline(model, lora, scale), list(rows.prompt), list(rows.seed), model)
    cells = rows.join(pd.Series([png(pixels) for pixels in images], name="image"))
    batches = (cells[i : i + BATCH] for i in range(0, len(cells), BATCH))
    return pd.DataFrame(list(chain.from_iterable(look_at(eyes, batches, rows))))
