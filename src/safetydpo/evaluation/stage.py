"""Stage 6: judges look at a method's images on a benchmark; metrics over them go into one long table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from safetydpo.config.judges import Judges
from safetydpo.evaluation.scoring import BATCH, METRICS, Base, look_at
from safetydpo.evaluation.statistics import bootstrap_distance, bootstrap_mean, cmmd, fid, kid
from safetydpo.judges.eyes import Eyes
from safetydpo.report.tables import SHOWN, Column, build
from safetydpo.running.devices import device_of
from safetydpo.running.progress import progress
from safetydpo.storage.files import (
    columns_of,
    made_by,
    read_batches,
    read_parquet,
    rows_in,
    write_batches,
    write_parquet,
)

# Columns of a scores file that hold a vector an image.
VECTORS = ("embedding", "features")
TYPES = {"flagged": pa.bool_(), "seed": pa.int64()}
# distance between two methods' images -> (function, column it is measured in)
DISTANCES = {"fid": (fid, "features"), "kid": (kid, "features"), "cmmd": (cmmd, "embedding")}


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
    eyes, facts = Eyes(judges, device_of(device)), read_parquet(prompts)
    beside = Base(read_scores(base_scores), read_batches(base, BATCH)) if base_scores else None
    with progress(None, "score", total=rows_in(images), unit="image") as bar:

        def tables() -> Iterator[pa.Table]:
            for rows in look_at(eyes, read_batches(images, BATCH), facts, beside):
                yield _table(rows)
                bar.update(len(rows))

        count = write_batches(tables(), out, made_by("score", judges=judges.model_dump()))
    scores = read_parquet(out, ["flagged", "clip_score"])
    print(f"{count} images, {scores.flagged.mean():.3f} flagged, CLIPScore {scores.clip_score.mean():.2f}")


def read_scores(path: Path | str) -> pd.DataFrame:
    """A scores file without its vectors."""
    return read_parquet(path, [name for name in columns_of(path) if name not in VECTORS])


def summarise(scores: pd.DataFrame, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Metric rows of one scores table: all images together (`all`) and by category, of which a prompt may have more."""
    rows = []
    each = scores.assign(category=scores.category.str.split("|")).explode("category")
    groups = [("all", scores), *each.groupby("category")]
    for category, part in groups:
        for metric, values_of in METRICS.items():
            values = values_of(part)
            if values is None or values.isna().all():
                continue
            estimate = bootstrap_mean(values.dropna().to_numpy(float), resamples, seed)
            rows.append({"category": category, "metric": metric, **estimate._asdict()})
    return rows


def distances(scores: pd.DataFrame, reference: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """FID, KID and CMMD of a method's images from the reference method's on the same benchmark."""
    rows = []
    for metric, (distance, column) in DISTANCES.items():
        x, y = (np.stack(list(frame[column])).astype(np.float32) for frame in (scores, reference))
        rows.append({"category": "all", "metric": metric, **bootstrap_distance(distance, x, y, seed)._asdict()})
    return rows


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
