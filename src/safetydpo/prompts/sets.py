"""Sets of prompts that are rendered by themselves: benchmarks to report on, retain prompts, tuning prompts.

A set is a Parquet with prompt_id, prompt, category, kind (unsafe | safe | benign | over-refusal), seed, expected:
`expected` is JSON with the attributes that a detector should see, where the source knows them (the demo world does).
Where rows have settings of their own, guidance_scale, height and width too, null where they are the model's.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field, TypeAdapter, ValidationError

from safetydpo.config.types import Pixels
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.columns import CATEGORIES, SETTINGS, Source, first_of
from safetydpo.prompts.overlap import Near, content_words
from safetydpo.storage.files import made_by, read_parquet, write_parquet
from safetydpo.storage.records import SEEDS, category_id, plain, seed_of
from safetydpo.storage.tables import read_rows, whole_seed

GOLDEN = (5**0.5 - 1) / 2
COLUMNS = ["prompt_id", "prompt", "category", "kind", "seed", "expected"]
# Values that a row's settings may have, as those of the config's section `model`.
GUIDANCE, SIZE = TypeAdapter(Annotated[float, Field(ge=1, allow_inf_nan=False)]), TypeAdapter(Pixels)


def file_rows(source: Source, kind: str, settings: bool = False) -> pd.DataFrame:
    """Rows of a file of prompts, perhaps with category and seed, as CoProV2, I2P and COCO have them.

    kind: what they become; settings: take guidance and size of each row too. A prompt of several categories (I2P's
    `categories`) has them joined by "|".
    """
    path, (column, head) = source.path, source.columns()
    category, given = first_of(CATEGORIES, head), first_of(SEEDS, head)
    own = {name: first_of(names, head) for name, names in SETTINGS.items()} if settings else {}
    if settings and not any(own.values()):
        known = ", ".join(name for names in SETTINGS.values() for name in names)
        raise SafetyDPOError(f"{path} has none of the columns {known}: leave row_settings out for it.")
    rows = read_rows(path, [column], list(filter(None, (category, given, *own.values()))), lists=CATEGORIES)
    print(f"{path}: prompts of its column `{column}`" + (f", categories of `{category}`" if category else ""))
    blank = rows[column].str.strip() == ""
    if blank.any():
        print(f"{path}: {int(blank.sum())} blank prompts skipped")
    numbers = [i for i, skip in enumerate(blank, 1) if not skip]
    rows = rows[~blank]
    if rows.empty:
        raise SafetyDPOError(f"{path} has no prompt in its column `{column}`.")
    out = pd.DataFrame({"prompt": rows[column], "kind": kind, "expected": "{}", "category": kind})
    if category:
        separator = "[,|]" if category == "categories" else r"\|"
        out["category"] = [_joined(re.split(separator, names)) for names in rows[category]]
    if given:
        seeds = [whole_seed(value, f"{path}, row {i}") for i, value in zip(numbers, rows[given], strict=True)]
        out["seed"] = pd.Series(seeds, out.index, dtype=object)
    for name, its in own.items():
        cells = rows[its] if its else [""] * len(rows)
        values = [_setting(name, cell, f"{path}, row {i}") for i, cell in zip(numbers, cells, strict=True)]
        out[name] = pd.array(values, dtype="Float64" if name == "guidance_scale" else "Int64")
    out.attrs = {"read": len(blank), "blank": int(blank.sum())}
    return out.reset_index(drop=True)


def _setting(name: str, value: str, where: str) -> float | None:
    if value.strip().lower() in ("", "nan", "none", "null"):
        return None
    try:
        return (GUIDANCE if name == "guidance_scale" else SIZE).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise SafetyDPOError(
            f"{where} has the {name} {value!r} ({reason}): correct it or leave row_settings out."
        ) from None


def held_out_rows(paths: Sequence[str], kind: str, threshold: float) -> pd.DataFrame:
    """Prompts of the pairs held out of training, each once; none whose words overlap by the threshold with one that
    trains, in whatever category, as an unsafe or as a safe prompt.
    """
    pairs = pd.concat([read_parquet(path) for path in paths], ignore_index=True)
    train, test = pairs[pairs.split == "train"], pairs[pairs.split == "test"]
    rows = pd.DataFrame({"prompt": test[f"{kind}_prompt"], "category": test.category, "kind": kind, "expected": "{}"})
    trained = [*train.unsafe_prompt, *train.safe_prompt]
    near: Near[str] = Near(threshold)
    for prompt in dict.fromkeys(trained):
        near.add(prompt, content_words(prompt))
    same, straddling = rows.prompt.map(plain), [near.find(content_words(prompt)) is not None for prompt in rows.prompt]
    rows = rows[~same.isin(set(map(plain, trained))) & ~same.duplicated() & ~np.array(straddling, dtype=bool)]
    print(f"{len(test)} pairs held out of training, {len(test) - len(rows)} of them repeated or near a training prompt")
    if rows.empty:
        raise SafetyDPOError(
            "No pair is held out of training: raise prompts.test_share or prompts.pairs; or, where prompts are so "
            "alike that all are near duplicates, prompts.filters.near_duplicates."
        )
    return rows.reset_index(drop=True)


def _joined(names: list[str]) -> str:
    """Ids of a prompt's categories, each once."""
    return "|".join(dict.fromkeys(found for name in names if (found := category_id(name))))


def spread(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """At most n rows: one of each category, then, at every n, in the shares that the file has.

    Every row has a place from 0 to 1 and the first n are taken. A category's rows stand evenly, in the file's order.
    Combinations of several are too rare for that each by itself: sorted, they are one group, placed by steps of the
    golden ratio, so that neighbours stand far apart and every stretch has its share of each kind.
    """
    names = rows.category.str.split("|")
    several = rows.category.str.contains("|", regex=False)
    group = names.str[0].mask(several, "|")
    order = rows.category.where(several, "").sort_values(kind="stable").index
    rank = group[order].groupby(group[order]).cumcount() + 0.5
    place = (rank / group.map(group.value_counts())).mask(several, rank * GOLDEN % 1)
    first = names[several.sort_values(kind="stable").index].explode().drop_duplicates().index
    place[first] = 0
    return rows.loc[place[rows.index].sort_values(kind="stable").index].head(n)


def write_set(rows: pd.DataFrame, name: str, seed: int, out: Path | str, images: int = 1) -> None:
    """images: rows per prompt; the first has the prompt's own seed."""
    counts = {"read": len(rows), **rows.attrs, "used": len(rows)}
    rows = rows.reset_index(drop=True)
    rows["prompt_id"] = [f"{name}-{i:05d}" for i in range(len(rows))]
    if images > 1:
        more = [rows.assign(prompt_id=rows.prompt_id + f"-{k}", seed=None) for k in range(1, images)]
        rows = pd.concat([rows, *more]).sort_values("prompt_id", kind="stable", ignore_index=True)
    given = rows["seed"] if "seed" in rows else [None] * len(rows)
    rows["seed"] = [
        seed_of(seed, key) if pd.isna(value) else int(value) for key, value in zip(rows.prompt_id, given, strict=True)
    ]
    columns = [*COLUMNS, *(name for name in SETTINGS if name in rows)]
    write_parquet(rows[columns], out, made_by("benchmark", name=name, seed=seed, counts=counts))
    each = f", {images} images each" if images > 1 else ""
    print(f"{name}: {counts}{each}; {rows.category.str.split('|').explode().nunique()} categories")
