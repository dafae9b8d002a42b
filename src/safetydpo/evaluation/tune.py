"""The LoRA scale of a method: tried on tuning prompts, which are neither trained on nor reported."""

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pandas as pd

from safetydpo.config.evaluation import Tune
from safetydpo.config.judges import Verdict
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.scores import METRICS
from safetydpo.evaluation.scoring import BATCH, look_at
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.verdicts import verdict_of
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.storage.finite import finite
from safetydpo.storage.images import png

RATES = ("attributes", "benign_mark_right")  # shares of facts that a detector finds as the prompts say


def next_scale(config: Tune, tried: Sequence[tuple[float, float]]) -> float | None:
    """The scale to try after those that were, each with its IP; None where there are enough.

    With `tries` an interval between the ends is halved, by ratios: towards the smallest scale that reaches `max_ip`,
    where what is harmless is kept best; while none does, towards the lowest IP. Beyond it a LoRA ruins images, which
    judges flag too: IP falls with the scale and rises again. All methods get as many tries.
    """
    scales = sorted(set(config.scales))
    if not config.tries:
        return scales[len(tried)] if len(tried) < len(scales) else None
    if len(tried) >= config.tries:
        return None
    low, high = scales[0], scales[-1]
    if reached := [scale for scale, ip in tried if ip <= config.max_ip]:
        high = min(reached)
        low = max((scale for scale, _ in tried if scale < high), default=low)
    elif tried:
        best, _ = min(tried, key=lambda pair: (pair[1], -pair[0]))
        below = max((scale for scale, _ in tried if scale < best), default=low)
        above = min((scale for scale, _ in tried if scale > best), default=None)
        if above is None:
            low = best
        else:  # the wider side of it
            low, high = (below, best) if best / below >= above / best else (best, above)
    return float(f"{math.sqrt(low * high):.3g}")


def choose_scale(curve: pd.DataFrame, max_ip: float) -> float:
    """The scale with the best `kept` among those with `ip` at most max_ip; else the one with the best kept - ip.

    Without the second term a method that never gets safe enough would be shown at the scale that ruins its images.
    curve: one row a scale, columns scale, ip, kept. Ties go to the lower ip, then to the smaller scale.
    """
    todo = "without them no LoRA scale can be chosen"
    finite(curve[["scale", "ip", "kept"]].to_numpy(float), "The tuning curve (scale, ip, kept)", todo)
    rows = curve.sort_values("scale").to_dict("records")
    good = [row for row in rows if row["ip"] <= max_ip]
    worth = (lambda row: row["kept"]) if good else (lambda row: row["kept"] - row["ip"])
    # rounded: a difference of shares that are equal can differ in its last bit
    return float(max(good or rows, key=lambda row: (round(worth(row), 9), -row["ip"]))["scale"])


def curve_row(scores: pd.DataFrame, scale: float) -> dict[str, float]:
    """Metrics at a scale: those of benign prompts begin with `benign_`; those that do not apply are not there.

    ip is the share of the images that have a verdict.
    """
    unsafe, benign = scores[scores.kind == "unsafe"], scores[scores.kind != "unsafe"]
    row = {"scale": scale, "n_unsafe": len(unsafe), "n_benign": len(benign)}
    if unjudged := int(unsafe.flagged.isna().sum()):
        print(f"scale {scale:g}: {unjudged} of {len(unsafe)} unsafe images have no verdict, ip is of the others")
    for name, part, metrics in (
        ("", unsafe, ("ip", "attributes", "benign_mark")),
        ("benign_", benign, ("mark_right", "clip_score")),
    ):
        for metric in metrics:
            values = METRICS[metric](part)
            if values is not None and not values.isna().all():
                row[name + metric] = float(values.mean())
    return row


def tuning_curve(
    rows: pd.DataFrame, lora: Path | str, config: Tune, model: Model, eyes: Eyes, verdict: Verdict
) -> pd.DataFrame:
    """A row a scale: `curve_row`; `kept`, what survives of what is harmless, on the scale of ip: 1 is all of it; and
    which is `chosen`.

    Where a detector knows the prompts' facts: the mean of the shares right (unsafe prompts' attributes, benign marks).
    Where none does: CLIPScore of benign prompts as a share of the base model's on the same prompts and seeds, which is
    `base_benign_clip_score`. A CLIPScore by itself is no share: an image of the prompt has about 30, a ruined one 15.
    """
    table: list[dict[str, float]] = []
    while (scale := next_scale(config, [(row["scale"], row["ip"]) for row in table])) is not None:
        table.append(curve_row(judged(rows, lora, scale, model, eyes, verdict), scale))
        print(table[-1])
        if "ip" not in table[-1]:
            raise SafetyDPOError(
                f"tune: `{verdict.name}` gives no image of the unsafe tuning prompts a verdict, so no LoRA scale can "
                f"be chosen: look at the answers of {' and '.join(verdict.judges)}, or put another verdict first in "
                "judges.verdicts."
            )
    curve = pd.DataFrame(table).sort_values("scale", ignore_index=True)
    if rates := [name for name in RATES if name in curve]:
        curve = curve.assign(kept=curve[rates].mean(axis=1))
    else:
        base = _base_clip_score(rows, model, eyes, verdict)
        curve = curve.assign(base_benign_clip_score=base, kept=curve.benign_clip_score / base)
    return curve.assign(chosen=curve.scale == choose_scale(curve, config.max_ip))


def _base_clip_score(rows: pd.DataFrame, model: Model, eyes: Eyes, verdict: Verdict) -> float:
    base = float(judged(rows[rows.kind != "unsafe"], None, 1.0, model, eyes, verdict).clip_score.mean())
    if base <= 0:
        raise SafetyDPOError(
            f"tune: the CLIPScore of {model.id} on the benign tuning prompts is {base:.2f}, so what a LoRA keeps of it "
            "is not known: tune on prompts that the model draws, set another judges.clip_score, or give one scale."
        )
    return base


def judged(
    rows: pd.DataFrame, lora: Path | str | None, scale: float, model: Model, eyes: Eyes, verdict: Verdict
) -> pd.DataFrame:
    """Scores of prompts rendered with a LoRA at a scale, or by the model alone, and whether each is `flagged`."""
    rows = rows.reset_index(drop=True)
    images = render(load_pipeline(model, lora, scale), list(rows.prompt), list(rows.seed), model)
    cells = rows.join(pd.Series([png(pixels) for pixels in images], name="image"))
    batches = (cells[i : i + BATCH] for i in range(0, len(cells), BATCH))
    scores = pd.DataFrame(list(chain.from_iterable(look_at(eyes, batches, rows))))
    return scores.assign(flagged=verdict_of(verdict, scores))
