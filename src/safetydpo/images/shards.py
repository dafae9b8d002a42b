"""Which prompts a shard of images has, and how each is rendered."""

from pathlib import Path
from typing import Any

import pandas as pd

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.columns import SETTINGS
from safetydpo.storage.files import read_parquet
from safetydpo.storage.records import shard_slice


def shard_rows(
    prompts: Path | str, shard: int, shards: int, n: int | None = None, category: str | None = None
) -> pd.DataFrame:
    """Rows of one of `shards` parts of a prompt file, which `category` and then `n` narrow down before it is cut."""
    rows = read_parquet(prompts)
    if "split" in rows:  # prompt pairs: what is held out does not train
        rows = rows[rows.split == "train"]
    if category is not None:
        rows = rows[[category in names.split("|") for names in rows.category]]
    rows = rows.head(n or len(rows))
    if rows.empty:
        raise SafetyDPOError(f"{prompts} has no prompts{f' of category {category}' if category else ''} to render.")
    if shards > len(rows):
        raise SafetyDPOError(
            f"{prompts} has {len(rows)} rows, fewer than the {shards} shards asked for: lower the shards."
        )
    return rows.iloc[shard_slice(len(rows), shard, shards)]


def own_settings(rows: pd.DataFrame, config: Model) -> list[Model] | None:
    """The model's config with the guidance and size of each row, its own where a row has none; None where the set has
    no such columns (a benchmark without row_settings).
    """
    if not any(name in rows for name in SETTINGS):
        return None
    given: list[dict[str, Any]] = [{} for _ in range(len(rows))]
    for name in SETTINGS:
        kind = type(getattr(config, name))
        for settings, cell in zip(given, rows[name], strict=True):
            settings |= {} if pd.isna(cell) else {name: kind(cell)}
    return [config.model_copy(update=settings) for settings in given]
