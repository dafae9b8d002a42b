"""Stage 2: images of prompt pairs, and of prompt sets by any method, as Parquet shards."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from safetydpo.config.baselines import Baselines
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import open_method
from safetydpo.methods.registry import method_of
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.storage.files import made_by, read_parquet, write_parquet
from safetydpo.storage.images import png
from safetydpo.storage.records import seed_of, shard_slice


def _shard(
    prompts: Path | str, shard: int, shards: int, n: int | None = None, category: str | None = None
) -> pd.DataFrame:
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


def render_pairs(prompts: Path | str, config: Model, shard: int, shards: int, seed: int, out: Path | str) -> None:
    """Render both prompts of each pair from the same seed: pair_id, seed, unsafe_image, safe_image."""
    rows = _shard(prompts, shard, shards)
    seeds = [seed_of(seed, key) for key in rows.pair_id]
    both = [*rows.unsafe_prompt, *rows.safe_prompt]
    images = [png(pixels) for pixels in render(load_pipeline(config), both, seeds * 2, config)]
    half = len(rows)
    table = [
        {"pair_id": key, "seed": s, "unsafe_image": u, "safe_image": v}
        for key, s, u, v in zip(rows.pair_id, seeds, images[:half], images[half:], strict=True)
    ]
    header = made_by("render", config=config.model_dump(), seed=seed, shard=shard, shards=shards)
    write_parquet(table, out, header, images=("unsafe_image", "safe_image"))


def read_pairs(prompts: Path | str, size: tuple[int, int], shard: int, shards: int, out: Path | str) -> None:
    """Take the images that came with the pairs, cut to `size` (height, width): a file as render_pairs writes it."""
    rows, (height, width) = _shard(prompts, shard, shards), size
    table = []
    for row in rows.itertuples():
        both = {}
        for role in ("unsafe", "safe"):
            with Image.open(str(getattr(row, f"{role}_file"))) as image:
                fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
            both[f"{role}_image"] = png(np.asarray(fitted))
        table.append({"pair_id": row.pair_id, "seed": None, **both})
    header = made_by("render", size=size, shard=shard, shards=shards)
    write_parquet(table, out, header, images=("unsafe_image", "safe_image"))


def render_prompts(
    prompts: Path | str,
    config: Model,
    out: Path | str,
    *,
    shard: int = 0,
    shards: int = 1,
    n: int | None = None,
    category: str | None = None,
    method: str = "base",
    baselines: Baselines | None = None,
    weights: Path | str | None = None,
    scale: float = 1.0,
) -> None:
    """Render a prompt set with a method: prompt_id, prompt, category, seed, image.

    weights, scale: see `open_method`; `category` and then `n` narrow the set down before it is cut into shards.
    """
    rows = _shard(prompts, shard, shards, n, category)
    offset = method_of(method).kind.seed_offset
    seeds = [(int(seed) + offset) & 0x7FFFFFFFFFFFFFFF for seed in rows.seed]
    pipeline = open_method(method, config, baselines or Baselines(), weights, scale)  # type: ignore[call-arg]
    images = render(pipeline, list(rows.prompt), seeds, config)
    table = rows[["prompt_id", "prompt", "category"]].to_dict("records")
    table = [{**row, "seed": s, "image": png(x)} for row, s, x in zip(table, seeds, images, strict=True)]
    header = made_by("render", config=config.model_dump(), method=method, scale=scale, shard=shard, shards=shards)
    write_parquet(table, out, header, images=("image",))
