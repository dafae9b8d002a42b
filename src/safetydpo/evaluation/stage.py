"""Stage 6: the LoRA scale of each method; judges look at its images on a benchmark; metrics in one long table."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from safetydpo.config.evaluation import Tune
from safetydpo.config.judges import Judges
from safetydpo.config.model import Model
from safetydpo.evaluation.metrics import distances, read_scores, summarise
from safetydpo.evaluation.scoring import BATCH, VECTORS, Base, look_at, refuse_unknown
from safetydpo.evaluation.tune import choose_scale, tuning_curve
from safetydpo.judges.eyes import Eyes
from safetydpo.running.devices import device_of
from safetydpo.running.progress import progress
from safetydpo.storage.files import made_by, read_parquet, rows_in, write_batches, write_parquet, write_text
from safetydpo.storage.images import read_image_batches

TYPES = {"flagged": pa.bool_(), "seed": pa.int64()}


def tune_scale(
    prompts: Path | str,
    lora: Path | str,
    model: Model,
    judges: Judges,
    config: Tune,
    curve_out: Path | str,
    scale_out: Path | str,
) -> None:
    """Render and judge the tuning prompts at every scale; write the curve (a row a scale) and the chosen scale."""
    scales = sorted(set(config.scales))
    if len(scales) == 1:
        curve = pd.DataFrame([{"scale": scales[0]}])
        chosen = scales[0]
    else:
        rows = read_parquet(prompts)
        curve = tuning_curve(rows, lora, scales, model, Eyes(judges, device_of(model.device)))
        chosen = choose_scale(curve, config.max_ip)
    header = made_by("tune", config=config.model_dump(), lora=str(lora))
    write_parquet(curve.assign(chosen=curve.scale == chosen), curve_out, header)
    write_text(json.dumps({"scale": chosen}) + "\n", scale_out)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of scores in columns whose types do not depend on what a batch happens to hold."""

    def kind(name: str) -> pa.DataType:
        if name in VECTORS:
            return pa.list_(pa.float32(), len(rows[0][name]))
        words = name.startswith("seen_") or name in ("prompt_id", "category", "kind")
        return pa.string() if words else TYPES.get(name, pa.float64())

    return pa.Table.from_pylist(rows, pa.schema([(name, kind(name)) for name in rows[0]]))


def write_scores(
    images: list[str],
    prompts: Path | str,
    base: list[str],
    base_scores: str | None,
    judges: Judges,
    device: str,
    out: Path | str,
) -> None:
    """Score the image shards of one method on one benchmark; `base` are the base model's shards and scores, for layout
    and paired comparison. Memory does not grow with the number of images.
    """
    facts = read_parquet(prompts)
    for shard in images:  # said before a judge is loaded
        refuse_unknown(read_parquet(shard, ["prompt_id"]).prompt_id, pd.Index(facts.prompt_id))
    eyes = Eyes(judges, device_of(device))
    beside = Base(read_scores(base_scores), read_image_batches(base, BATCH)) if base_scores else None
    with progress(None, "score", total=rows_in(images), unit="image") as bar:

        def tables() -> Iterator[pa.Table]:
            for rows in look_at(eyes, read_image_batches(images, BATCH), facts, beside):
                yield _table(rows)
                bar.update(len(rows))

        count = write_batches(tables(), out, made_by("score", judges=judges.model_dump()))
    scores = read_parquet(out, ["flagged", "clip_score"])
    print(f"{count} images, {scores.flagged.mean():.3f} flagged, CLIPScore {scores.clip_score.mean():.2f}")


def write_metrics(
    scores: dict[tuple[str, str], str],
    kinds: dict[str, str],
    resamples: int,
    fid_reference: str | None,
    seed: int,
    out: Path | str,
) -> None:
    """The long table: method, benchmark, category, metric, value, ci_low, ci_high, n, seed.

    scores: cell of the matrix -> file; kinds: benchmark -> unsafe | safe | benign. FID and KID are measured on safe
    benchmarks, from the images of the method `fid_reference`.
    """
    rows = []
    for (method, benchmark), path in progress(scores.items(), "metrics"):
        found = summarise(read_scores(path), resamples, seed)
        reference = scores.get((fid_reference or "", benchmark))
        if kinds[benchmark] == "safe" and reference is not None and method != fid_reference:
            found += distances(read_parquet(path, list(VECTORS)), read_parquet(reference, list(VECTORS)), seed)
        rows += [{"method": method, "benchmark": benchmark, **row, "seed": seed} for row in found]
    write_parquet(pd.DataFrame(rows), out, made_by("metrics", bootstrap=resamples, fid_reference=fid_reference))
