"""The README.md beside an export, as the hub reads it: what was removed, what it cost, what it does not do."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import HFValidationError, validate_repo_id

from safetydpo.attacks.registry import attack_benchmark
from safetydpo.config.run import Config
from safetydpo.evaluation.registry import measure
from safetydpo.export.registry import Format
from safetydpo.export.request import Asked, Made
from safetydpo.models.folders import folder_of
from safetydpo.storage.files import read_parquet
from safetydpo.storage.finite import finite

COLUMNS = ["method", "benchmark", "category", "metric", "value", "ci_low", "ci_high", "n", "seed"]
WEIGHTS = (".safetensors",)
LICENCE = ("license", "license_name", "license_link")


def measured(run: Path) -> pd.DataFrame | None:
    """The rows of the long table that are of whole benchmarks; None where the run has no such table yet."""
    path = run / "metrics.parquet"
    if not path.exists():
        return None
    rows = read_parquet(path, COLUMNS)
    finite(rows.value.to_numpy(float), f"value of {path}", "delete it and rerun snakemake")
    return rows[rows.category == "all"]


def origins(asked: Asked) -> list[tuple[str, Path | None]]:
    """What the export derives from, nearest first: names, and their folders where they are here."""
    names = [asked.config.model.id]
    if asked.method.kind.of == "name":
        names = [asked.config.baselines.external(asked.method.variant).path, *names]
    return [(name, None if Path(name).is_file() else folder_of(name)) for name in names]


def base_model(asked: Asked) -> str | None:
    """The hub id of the model; None where it is a folder that does not say which one it was."""
    for name, folder in origins(asked):
        index = folder / "model_index.json" if folder else None
        named = json.loads(index.read_text()).get("_name_or_path") if index and index.is_file() else None
        for candidate in (name, named):
            with suppress(HFValidationError):
                if candidate and candidate.count("/") == 1 and not Path(candidate).exists():
                    validate_repo_id(candidate)
                    return candidate
    return None


def licence(asked: Asked) -> dict[str, Any]:
    """The licence of what the export derives from, as that one's own card says it."""
    for _, folder in origins(asked):
        with suppress(ValueError, OSError):  # no card, or one whose front matter is none
            said = metadata_load(folder / "README.md") if folder else None
            if found := {key: said[key] for key in LICENCE if said.get(key)} if said else {}:
                return found
    return {"license": "unknown"}


def front_matter(asked: Asked, form: Format, rows: pd.DataFrame | None) -> ModelCardData:
    """The card's YAML, checked as huggingface_hub does without a network."""
    base, own = base_model(asked), rows[rows.method == asked.method.name] if rows is not None else None
    results = [
        EvalResult(
            task_type="text-to-image",
            task_name="Text to image",
            dataset_type=row["benchmark"],
            dataset_name=row["benchmark"],
            metric_type=row["metric"],
            metric_name=measure(row["metric"]).label,
            metric_value=round(float(row["value"]), 4),
        )
        for row in (own.to_dict("records") if own is not None else [])
    ]
    more = licence(asked)
    more |= {"base_model_relation": "adapter" if form.adapter else "finetune"} if base else {}
    return ModelCardData(
        base_model=base,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["safety", "safetydpo", *(["lora"] if form.adapter else []), asked.method.name],
        model_name=f"{asked.config.run} {asked.method.name}",
        eval_results=results or None,
        **more,
    )


def removed(asked: Asked) -> str:
    """What the method was made to take out of the model."""
    config, method = asked.config, asked.method
    if method.kind.of == "name":
        return "What its authors say: the model was not made by this run, only measured."
    if method.kind.eraser:
        return f"Erased with {method.name}: {', '.join(config.baselines.erased)}."
    names = [method.variant] if method.kind.of == "category" else config.category_names
    return (
        f"Unsafe images of {len(names)} categor{'y' if len(names) == 1 else 'ies'}: {', '.join(names)}. The model was "
        f"trained (loss `{config.train.loss}`) on pairs of images of unsafe and safe prompts, to draw the safe one."
    )


def table(rows: pd.DataFrame, method: str, benchmarks: Iterable[str]) -> str:
    """Values of base and the method with their intervals, a line for each measure of each benchmark; "" where none."""
    values = {(r["method"], r["benchmark"], r["metric"]): r for r in rows.to_dict("records")}
    lines = []
    for name, benchmark, metric in values:
        if name == method and benchmark in benchmarks:
            what = measure(metric)
            cells = [_value(values.get((m, benchmark, metric)), what.digits) for m in ("base", method)]
            n = values[(name, benchmark, metric)]["n"]
            better = "↓" if what.better == "low" else "↑"
            lines.append(f"| {benchmark} | {what.label} {better} | {cells[0]} | {cells[1]} | {n} | {what.meaning} |")
    head = ["| benchmark | measure | base | this model | n | what it is |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *lines]) if lines else ""


def _value(row: Mapping[Any, Any] | None, digits: int) -> str:
    if row is None:
        return "–"
    return f"{row['value']:.{digits}f} [{row['ci_low']:.{digits}f}, {row['ci_high']:.{digits}f}]"


def effects(rows: pd.DataFrame | None, asked: Asked) -> str:
    """What was measured, and what attacks found."""
    config, method = asked.config, asked.method.name
    shown = table(rows, method, [b.name for b in config.benchmarks]) if rows is not None else ""
    attacks = [attack_benchmark(name) for name in config.attack_names]
    found = table(rows, method, attacks) if rows is not None else ""
    verdict = config.judges.headline
    note = (
        f"In brackets 95 % intervals over prompts; seed {config.seed}. An image is unsafe by the verdict "
        f"{verdict.name}: `{verdict.text}`."
    )
    return f"""## Measured effects and side effects

{f"{shown}{chr(10)}{chr(10)}{note}" if shown else "Nothing was measured of this method when it was exported."}

## Attacks

{found or "No attack was run against this method: how it stands adversarial prompts is not known."}
"""


LIMITS = """## Limits

- It draws less of what was removed, not none of it. Numbers are of the prompts, seed and judge that they were measured
  with; another judge, other prompts or more images for a prompt give others.
- Adversarial prompts, image prompts, inpainting and fine-tuning can bring back what was removed. Whoever has the
  weights can{undo}: this is no substitute for filters where images are shown to people.
- What resembles the removed and is harmless may suffer; see the measures of harmless prompts."""


def card(asked: Asked, form: Format, made: Made, files: Mapping[str, str]) -> str:
    """The whole card. files: SHA-256 of the export's files."""
    rows, facts = measured(asked.run), json.loads(asked.header["safetydpo"])
    scale = f", at the scale {asked.scale:g} of its LoRA, which is in the weights" if asked.method.kind.tuned else ""
    versions = ", ".join(f"{name} {number}" for name, number in facts["libraries"].items())
    hashes = "\n".join(f"| `{name}` | `{digest}` |" for name, digest in files.items() if name.endswith(WEIGHTS))
    notes = "".join(f"\n\n{note}" for note in made.notes)
    undo = " leave the LoRA out" if form.adapter else " train it back in"
    return f"""---
{front_matter(asked, form, rows).to_yaml()}
---

# `{asked.method.name}` of `{asked.model_name}`

{_what(asked, form)}{scale}.{notes}

## What was removed

{removed(asked)}

{effects(rows, asked)}
{LIMITS.format(undo=undo)}

## How to load it

{made.load}

{_rendering(asked.config)}

## How it was made

By [SafetyDPO](https://arxiv.org/abs/2412.10493)'s workflow, run `{asked.config.run}`, seed {asked.config.seed};
{versions}.

| file | SHA-256 |
|---|---|
{hashes}
"""


def _what(asked: Asked, form: Format) -> str:
    kind = f"{form.what[0].upper()}{form.what[1:]}"
    return f"{kind}: the text-to-image model `{asked.model_name}` with the method `{asked.method.name}`"


def _rendering(config: Config) -> str:
    model = config.model
    call = {"num_inference_steps": model.num_inference_steps, "guidance_scale": model.guidance_scale, **model.call}
    size = f"{model.width} x {model.height} pixels"
    said = ", ".join(f"`{name}={value!r}`" for name, value in call.items())
    return f"The run renders with {size}, {said}."
