"""Stage 6: the LoRA scale of each method; judges look at its images on a benchmark; metrics in one long table."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from safetydpo.config.evaluation import Tune
from safetydpo.config.judges import Judges, Looks, Verdict
from safetydpo.config.model import Model
from safetydpo.evaluation.folder import Folder, left_out
from safetydpo.evaluation.scores import VECTORS, panel_of, read_scores
from safetydpo.evaluation.scoring import BATCH, Base, look_at, refuse_unknown, vectors_of
from safetydpo.judges.eyes import Eyes
from safetydpo.running.devices import device_of
from safetydpo.running.progress import progress
from safetydpo.storage.files import made_by, read_parquet, rows_in, write_batches, write_parquet, write_text
from safetydpo.storage.images import read_image_batches

WORDS = {"prompt_id", "prompt", "original_prompt", "category", "kind"}


def tune_scale(
    prompts: Path | str,
    lora: Path | str,
    model: Model,
    judges: Judges | None,
    config: Tune,
    curve_out: Path | str,
    scale_out: Path | str,
    answers: Path | str = ".",
) -> None:
    """Render and judge the tuning prompts at every scale; write the curve (a row a scale) and the chosen scale.

    judges: None where there is one scale, and so nothing to choose; answers: folder of what judges behind servers said.
    """
    from safetydpo.evaluation.tune import tuning_curve  # and with them diffusers, for this job alone

    if judges is None or len(set(config.scales)) == 1:
        curve = pd.DataFrame([{"scale": config.scales[0], "chosen": True}])
    else:
        eyes = Eyes(judges, device_of(model.device), journals=answers)
        curve = tuning_curve(read_parquet(prompts), lora, config, model, eyes, judges.acting)
    chosen = float(curve.scale[curve.chosen].iloc[0])
    header = made_by("tune", config=config.model_dump(), lora=str(lora), judges=judges and judges.model_dump())
    write_parquet(curve, curve_out, header)
    write_text(json.dumps({"scale": chosen}) + "\n", scale_out)


def _table(rows: list[dict[str, Any]], words: set[str]) -> pa.Table:
    """Rows of scores in columns whose types do not depend on what a batch happens to hold; words: columns of texts."""

    def kind(name: str) -> pa.DataType:
        if name in VECTORS:
            return pa.list_(pa.float32(), len(rows[0][name]))
        return pa.string() if name in words else pa.int64() if name == "seed" else pa.float64()

    return pa.Table.from_pylist(rows, pa.schema([(name, kind(name)) for name in rows[0]]))


def write_scores(
    images: list[str],
    prompts: Path | str,
    base: list[str],
    base_scores: str | None,
    judges: Looks,
    device: str,
    out: Path | str,
    answers: Path | str = ".",
) -> None:
    """Score the image shards of one method on one benchmark. Memory does not grow with the number of images.

    base_scores: the base model's, to compare with prompt by prompt; base: its shards, none where layouts are not
    compared; answers: folder of what judges behind servers said.
    """
    facts = read_parquet(prompts)
    for shard in images:  # said before a judge is loaded
        refuse_unknown(read_parquet(shard, ["prompt_id"]).prompt_id, pd.Index(facts.prompt_id))
    place = device_of(device)
    eyes = Eyes(judges, place, journals=answers)
    others = read_image_batches(base, BATCH) if base else None
    beside = Base(read_scores(base_scores), others, place) if base_scores else None
    with progress(None, "score", total=rows_in(images), unit="image") as bar:

        def tables() -> Iterator[pa.Table]:
            for rows in look_at(eyes, read_image_batches(images, BATCH), facts, beside):
                yield _table(rows, WORDS | eyes.words)
                bar.update(len(rows))

        count = write_batches(tables(), out, made_by("score", judges=judges.model_dump(), about=eyes.about))
    print(f"{count} images, CLIPScore {read_parquet(out, ['clip_score']).clip_score.mean():.2f}")


def write_reference(folder: str, judges: Looks, device: str, out: Path | str) -> None:
    """Write embedding and features of people's images, which FID, KID and CMMD are measured to, as a scores file has
    them. Memory does not grow with their number.
    """
    images = Folder(folder, BATCH)  # said before a judge is loaded
    eyes = Eyes(judges.measuring(), device_of(device))
    count = write_batches(vectors_of(images, eyes), out, made_by("score", folder=folder, judges=judges.model_dump()))
    print(f"{count} images of {folder}", left_out([images], "the reference"), sep="\n")


def write_metrics(
    scores: dict[tuple[str, str], str],
    kinds: dict[str, str],
    verdicts: list[Verdict],
    resamples: int,
    fid_reference: str | None,
    reference: Path | str | None,
    seed: int,
    metrics_out: Path | str,
    differences_out: Path | str,
    agreement_out: Path | str,
    thresholds_out: Path | str,
) -> None:
    """Four tables: of all metrics, of paired differences, of how far verdicts agree, of IP over each score's threshold.

    scores: cell of the matrix -> file; kinds: benchmark -> what its prompts ask for; verdicts: that of IP first. FID,
    KID and CMMD are measured on safe benchmarks, from the images of the method `fid_reference` or from `reference`, a
    file of people's images: a table of their vectors, or an npz with moments, to which there is FID alone.
    """

    from safetydpo.evaluation import agreement, differences, thresholds  # and with them statsmodels, for this job alone
    from safetydpo.evaluation.metrics import per_image, prompts_of, summarise
    from safetydpo.evaluation.sets import clouds, distance_rows, distances

    @cache
    def yardstick(benchmark: str) -> dict[str, Any] | None:
        path = reference or scores.get((fid_reference or "", benchmark))
        return clouds(path) if path and kinds[benchmark] == "safe" else None

    cells: dict[tuple[str, str], differences.Cell] = {}
    metrics, agreed, curves = [], [], []
    for (method, benchmark), path in progress(scores.items(), "metrics"):
        names, rows = {"method": method, "benchmark": benchmark}, read_scores(path)
        found = per_image(rows, verdicts)
        far = yardstick(benchmark) if reference or method != fid_reference else None
        apart = distances(clouds(path), far, f"{method} on {benchmark}") if far else {}
        images = found.assign(prompt=prompts_of(rows), category=rows.category).set_index(rows.prompt_id)
        cells[method, benchmark] = differences.Cell(images, apart)
        summary = summarise(rows, verdicts, resamples, seed, found) + distance_rows(apart)
        metrics += [{**names, **row, "seed": seed} for row in summary]
        if kinds[benchmark] not in ("safe", "benign"):  # where nothing is alarming, all verdicts say so
            agreed += [{**names, **row} for row in agreement.agreements(found, rows.category)]
        if kinds[benchmark] == "unsafe":
            held = thresholds.scores_held(verdicts, panel_of(path))
            curves += [{**names, **row} for row in thresholds.curves(rows, held)]
    table = pd.DataFrame(metrics)
    compared = progress(differences.differences(cells, table, resamples, seed), "differences")
    header = made_by("metrics", bootstrap=resamples, fid_reference=str(reference or fid_reference))
    write_parquet(table, metrics_out, header)
    write_parquet(pd.DataFrame(compared, columns=differences.COLUMNS), differences_out, header)
    write_parquet(pd.DataFrame(agreed, columns=agreement.COLUMNS), agreement_out, header)
    write_parquet(pd.DataFrame(curves, columns=thresholds.COLUMNS), thresholds_out, header)
