"""Stage 3: what training needs of images and prompts, computed once: VAE posteriors and text embeddings.

A features file holds, for n samples and each role (`safe`, `unsafe`, or `image` for retain sets), `<role>_mean` and
`<role>_std` (n, c, h, w), unscaled, and where flips are wanted the same of the mirrored image, `<role>_flip_mean` and
`<role>_flip_std`; the tensors of the model family's condition (`encoder_hidden_states` (m, tokens, d), ...) of the m
distinct prompts, the last one the empty prompt; `<role>_caption` (n,), the row there of each sample's prompt; and where
the images were rendered here, `seeds` (n,).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import SEEDS
from safetydpo.models.index import Index
from safetydpo.models.pipeline import finite_of, load_encoders
from safetydpo.models.text_encoder import encode_prompts
from safetydpo.running.progress import progress
from safetydpo.storage.files import made_by, read_parquet, write_safetensors
from safetydpo.storage.images import read_images, unpng


@torch.no_grad()
def encode_images(
    pipeline: Any, images: Sequence[dict[str, Any]], batch_size: int, flip: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and std (n, c, h, w) of the VAE, fp32, unscaled; of the mirrored images if `flip`."""
    means, stds = [], []
    for start in progress(range(0, len(images), batch_size), "encode mirrored" if flip else "encode"):
        pixels = np.stack([unpng(image) for image in images[start : start + batch_size]])
        tensor = torch.from_numpy(pixels[:, :, ::-1].copy() if flip else pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        posterior = pipeline.vae.encode(tensor.to(pipeline.vae.device, pipeline.vae.dtype)).latent_dist
        means.append(posterior.mean.float().cpu())
        stds.append(posterior.std.float().cpu())
    return torch.cat(means), torch.cat(stds)


def _prompts_of(rows: pd.DataFrame, prompts: Path | str, columns: list[str], images: str) -> pd.DataFrame:
    """The prompt columns of `prompts` in the order of the image rows."""
    key = "pair_id" if "pair_id" in rows else "prompt_id"
    texts = read_parquet(prompts, [key, *columns]).set_index(key)
    missing = set(rows[key]) - set(texts.index)
    if missing:
        raise SafetyDPOError(f"{images} has {key} {min(missing)}, which {prompts} lacks: delete the images and rerun.")
    return texts.loc[rows[key]]


def write_features(
    images: list[str],
    prompts: Path | str,
    roles: dict[str, tuple[str, str]],
    config: Model,
    out: Path | str,
    flip: bool = False,
) -> None:
    """Encode shards of images and their prompts.

    roles: role -> image column of `images` and prompt column of `prompts`; flip: the mirrored images too.
    Raises SafetyDPOError when images and prompts do not belong together, or values are not finite.
    """
    rows = pd.concat([read_images(path) for path in images], ignore_index=True)
    if rows.empty:  # of an adversarial round that found nothing
        facts = {"ids": "[]", "model": config.id, "family": Index(config).family.kind.name}
        write_safetensors({}, out, made_by("features", model=config.id, roles=roles, flip=flip) | facts)
        return
    texts = _prompts_of(rows, prompts, [column for _, column in roles.values()], images[0])
    pipeline = load_encoders(config)
    pipeline.vae.to(torch.float32)  # SDXL's overflows in half precision
    tensors = {}
    for role, (column, _) in roles.items():
        for mirrored in (False, True) if flip else (False,):
            name = f"{role}_flip" if mirrored else role
            encoded = encode_images(pipeline, list(rows[column]), config.batch_size, mirrored)
            for part, tensor in zip(("mean", "std"), encoded, strict=True):
                what = f"{config.id}: {name}_{part} of {images[0]} is not finite"
                tensors[f"{name}_{part}"] = finite_of(pipeline, tensor, what)
    distinct = [*dict.fromkeys(text for _, column in roles.values() for text in texts[column] if text), ""]
    tensors |= encode_prompts(pipeline, distinct, config)
    row_of = {text: i for i, text in enumerate(distinct)}
    for role, (_, column) in roles.items():
        tensors[f"{role}_caption"] = torch.tensor([row_of[text] for text in texts[column]])
    if rows.seed.notna().all():
        tensors[SEEDS] = torch.tensor([int(seed) for seed in rows.seed])
    header = made_by("features", model=config.id, roles=roles, flip=flip)
    facts = {"ids": json.dumps(list(texts.index)), "model": config.id, "family": pipeline.family.kind.name}
    write_safetensors(tensors, out, header | facts)
