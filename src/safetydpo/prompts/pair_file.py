"""Prompt pairs from a csv or Parquet: one row a pair, or CoProV2's layout with two rows that share a number."""

import pandas as pd

from safetydpo.config import Category, Prompts
from safetydpo.errors import SafetyDPOError
from safetydpo.files import read_rows
from safetydpo.records import category_id

IMAGE_NAME = r"^([us])_idx_(\d+)_0\.jpg$"


def pairs(category: Category, config: Prompts, seed: int) -> pd.DataFrame:
    """The category's pairs, in file order, only of its `concepts` when these are given."""
    del seed
    rows = read_rows(config.path or "")
    if "category" not in rows:
        raise SafetyDPOError(f"{config.path} has no column `category`; it has {', '.join(rows.columns)}.")
    rows = rows[rows.category.map(category_id) == category_id(category.name)]
    if {"unsafe_prompt", "safe_prompt"} <= set(rows.columns):
        found = rows.assign(concept=rows.get("concept", ""))
    elif {"prompt", "image"} <= set(rows.columns):
        found = _by_number(rows)
    else:
        raise SafetyDPOError(
            f"{config.path} needs columns unsafe_prompt, safe_prompt, category or, as CoProV2, prompt, image, category."
        )
    blank = (found.unsafe_prompt.str.strip() == "") | (found.safe_prompt.str.strip() == "")
    if blank.any():
        print(f"{config.path}: {int(blank.sum())} pairs with a blank prompt dropped")
    found = found[~blank]
    if category.concepts:
        found = found[found.concept.isin(category.concepts)]
    return found[["concept", "unsafe_prompt", "safe_prompt"]].reset_index(drop=True)


def _by_number(rows: pd.DataFrame) -> pd.DataFrame:
    """CoProV2: `u_idx_N_0.jpg` and `s_idx_N_0.jpg` are a pair; safe prompts made of dashes are junk and dropped."""
    parts = rows.image.str.extract(IMAGE_NAME)
    rows = rows.assign(kind=parts[0], number=parts[1]).drop_duplicates(["number", "kind"])
    wide = rows.pivot(index="number", columns="kind", values="prompt").reindex(columns=["u", "s"]).dropna()
    junk = wide.s.astype(str).str.startswith("---")  # without any pair the column is of floats
    names = ", ".join(wide.index[junk]) or "none"
    print(f"junk safe prompts dropped: {names}; {len(rows) - 2 * len(wide)} rows without a partner")
    wide = wide[~junk]
    return pd.DataFrame({"concept": "", "unsafe_prompt": wide.u.to_list(), "safe_prompt": wide.s.to_list()})
