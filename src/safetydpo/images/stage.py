"""Stage 2: images of prompt pairs, and of prompt sets by any method, as Parquet shards."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from safetydpo.config.baselines import Baselines
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.images.shards import own_settings, shard_rows
from safetydpo.methods.opening import open_method
from safetydpo.methods.registry import method_of
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.storage.brought import brought
from safetydpo.storage.files import made_by
from safetydpo.storage.images import IMAGES_AT_ONCE, png, write_images
from safetydpo.storage.records import seed_of


def render_pairs(prompts: Path | str, config: Model, shard: int, shards: int, seed: int, out: Path | str) -> None:
    """Render both prompts of each pair from the same seed: pair_id, seed, unsafe_image, safe_image."""
    rows = shard_rows(prompts, shard, shards)
    header = made_by("render", config=config.model_dump(), seed=seed, shard=shard, shards=shards)
    write_images(
        _rendered_pairs(load_pipeline(config), rows, config, seed), out, header, ("unsafe_image", "safe_image")
    )


def _rendered_pairs(pipeline: Any, rows: pd.DataFrame, config: Model, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of a pairs file. Unsafe prompts come before safe ones within each row group: no more images are kept."""
    groups = [rows.iloc[i : i + IMAGES_AT_ONCE] for i in range(0, len(rows), IMAGES_AT_ONCE)]
    seeds = [[seed_of(seed, key) for key in group.pair_id] for group in groups]
    prompts = [prompt for group in groups for prompt in (*group.unsafe_prompt, *group.safe_prompt)]
    images = render(pipeline, prompts, [s for part in seeds for s in part * 2], config)
    for group, part in zip(groups, seeds, strict=True):
        unsafe = [png(pixels) for pixels in islice(images, len(group))]
        for key, own, u in zip(group.pair_id, part, unsafe, strict=True):
            yield {"pair_id": key, "seed": own, "unsafe_image": u, "safe_image": png(next(images))}


def read_pairs(prompts: Path | str, size: tuple[int, int], shard: int, shards: int, out: Path | str) -> None:
    """Take the images that came with the pairs, cut to `size` (height, width): a file as render_pairs writes it."""
    rows = shard_rows(prompts, shard, shards)
    header = made_by("render", size=size, shard=shard, shards=shards)
    write_images(_read_pairs(rows, size, prompts), out, header, ("unsafe_image", "safe_image"))


def _read_pairs(rows: pd.DataFrame, size: tuple[int, int], prompts: Path | str) -> Iterator[dict[str, Any]]:
    height, width = size
    for row in rows.itertuples():
        both = {}
        for role in ("unsafe", "safe"):
            try:
                image = Image.fromarray(brought(str(getattr(row, f"{role}_file"))))
            except SafetyDPOError as error:
                raise SafetyDPOError(
                    f"Pair {row.pair_id}: {error} Then delete {prompts}, which leaves out pairs without images when it "
                    "is made anew."
                ) from None
            fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
            both[f"{role}_image"] = png(np.asarray(fitted))
        yield {"pair_id": row.pair_id, "seed": None, **both}


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

    weights, scale: see `open_method`; `category` and then `n` narrow the set down before it is cut into shards. Where
    rows have settings of their own, each is rendered with them.
    """
    rows, kind = shard_rows(prompts, shard, shards, n, category), method_of(method).kind
    seeds = [(int(seed) + kind.seed_offset) & 0x7FFFFFFFFFFFFFFF for seed in rows.seed]
    own = own_settings(rows, config)
    if kind.guided and any(settings.guidance_scale <= 1 for settings in own or []):
        raise SafetyDPOError(
            f"{method} changes classifier-free guidance, which must be above 1: {prompts} has a row where it is 1."
        )
    pipeline = open_method(method, config, baselines or Baselines(), weights, scale)  # type: ignore[call-arg]
    images = render(pipeline, list(rows.prompt), seeds, config, own)
    facts = rows[["prompt_id", "prompt", "category"]].to_dict("records")
    table = ({**row, "seed": s, "image": png(x)} for row, s, x in zip(facts, seeds, images, strict=True))
    header = made_by("render", config=config.model_dump(), method=method, scale=scale, shard=shard, shards=shards)
    write_images(table, out, header, ("image",))
