"""Stage 1: prompt pairs of a category, as Parquet. A source is one function here; add yours to SOURCES."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from safetydpo.config import Category, Prompts
from safetydpo.errors import SafetyDPOError
from safetydpo.files import made_by, write_parquet
from safetydpo.prompts import demo, pair_file
from safetydpo.records import pair_id

COLUMNS = ["pair_id", "category", "concept", "unsafe_prompt", "safe_prompt", "source"]

# (category, config, seed) -> columns concept, unsafe_prompt, safe_prompt, in the order to use them.
Source = Callable[[Category, Prompts, int], pd.DataFrame]
SOURCES: dict[str, Source] = {"demo": demo.pairs, "file": pair_file.pairs}


def write_pairs(category: Category, config: Prompts, seed: int, out: Path | str) -> None:
    """Write the pairs of one category: pair_id, category, concept, unsafe_prompt, safe_prompt, source.

    Raises SafetyDPOError when the source has no pair for the category.
    """
    pairs = SOURCES[config.source](category, config, seed)
    pairs = pairs.assign(category=category.name, source=config.source)
    pairs["pair_id"] = [
        pair_id(category.name, unsafe, safe)
        for unsafe, safe in zip(pairs.unsafe_prompt, pairs.safe_prompt, strict=True)
    ]
    pairs = pairs.drop_duplicates("pair_id").head(config.pairs)
    if pairs.empty:
        where = config.path or f"the {config.source} source"
        raise SafetyDPOError(
            f"Category {category.name}: {where} has no prompt pair for it; check its name and `concepts`, or remove it."
        )
    facts = {"category": category.model_dump(), "config": config.model_dump(), "seed": seed}
    write_parquet(pairs[COLUMNS], out, made_by("prompts", **facts))
    print(f"{category.name}: {len(pairs)} pairs of {pairs.concept.nunique()} concepts")
