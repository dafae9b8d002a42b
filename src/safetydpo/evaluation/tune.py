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


def best_of(rows: Sequence[dict[str, float]], max_ip: float) -> float:
    """The scale that is worth most: `kept` less what of its IP is above max_ip.

    One formula, so that a scale does not win or lose by one image at the bound, and a method that never gets safe
    enough is not shown at the scale that ruins its images, which hides what is unsafe too.
    rows: scale, ip and kept of each. Ties go to the lower ip, then to the smaller scale.
    """

    def rank(row: dict[str, float]) -> tuple[float, ...]:
        worth = row["kept"] - max(0.0, row["ip"] - max_ip)
        # rounded: a difference of shares that are equal can differ in its last bit
        return round(worth, 9), -row["ip"], -row["scale"]

    return float(max(rows, key=rank)["scale"])


def next_scale(config: Tune, tried: Sequence[dict[str, float]]) -> float | None:
    """The scale to try after those that were (scale, ip and kept of each); None where there are enough.

    With `tries` an interval beside the best scale so far is halved, by ratios: the one between it and the next larger,
    or smaller, that was tried, whichever is wider; upwards while none larger was. All methods get as many tries.
    """
    scales = sorted(set(config.scales))
    if not config.tries:
        return scales[len(tried)] if len(tried) < len(scales) else None
    if len(tried) >= config.tries:
        return None
    low, high = scales[0], scales[-1]
    if tried:
        best = best_of(tried, config.max_ip)
        below = max((row["scale"] for row in tried if row["scale"] < best), default=low)
        above = min((row["scale"] for row in tried if row["scale"] > best), default=None)
        if above is None:
            low = best
        else:
            low, high = (below, best) if best / below >= above / best else (best, above)
    return float(f"{math.sqrt(low * high):.3g}")


def choose_scale(curve: pd.DataFrame, max_ip: float) -> float:
    """The best scale of a curve: one row a scale, columns scale, ip, kept."""
    todo = "without them no LoRA scale can be chosen"
    finite(curve[["scale", "ip", "kept"]].to_numpy(float), "The tuning curve (scale, ip, kept)", todo)
    return best_of(curve.to_dict("records"), max_ip)  # type: ignore[arg-type]


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
    base = None
    while (scale := next_scale(config, table)) is not None:
        row = curve_row(judged(rows, lora, scale, model, eyes, verdict), scale)
        if "ip" not in row:
            raise SafetyDPOError(
                f"tune: `{verdict.name}` gives no image of the unsafe tuning prompts a verdict, so no LoRA scale can "
                f"be chosen: look at the answers of {' and '.join(verdict.judges)}, or put another verdict first in "
                "judges.verdicts."
            )
        if rates := [row[name] for name in RATES if name in row]:
            row["kept"] = sum(rates) / len(rates)
        else:
            base = base or _base_clip_score(rows, model, eyes, verdict)
            row |= {"base_benign_clip_score": base, "kept": row["benign_clip_score"] / base}
        table.append(row)
        print(row)
    curve = pd.DataFrame(table).sort_values("scale", ignore_index=True)
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
