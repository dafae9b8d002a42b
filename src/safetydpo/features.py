"""Stage 3: what training needs of images and prompts, computed once: VAE posteriors and text embeddings.

A features file holds, for n samples and each image role (`unsafe`, `safe`, or `image` for retain sets),
`<role>_mean` and `<role>_std` (n, c, h, w), unscaled; `encoder_hidden_states` (m, tokens, d) of the m distinct
captions, the last one the empty prompt; `caption` (n,), each sample's row there.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from safetydpo.config import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.files import made_by, read_parquet, write_safetensors
from safetydpo.images import unpng
from safetydpo.models import encode_prompts, load_pipeline


@torch.no_grad()
def encode_images(
    pipeline: Any, images: Sequence[dict[str, Any]], batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and std (n, c, h, w) of the VAE, fp32, unscaled."""
    means, stds = [], []
    for start in tqdm(range(0, len(images), batch_size), "encode", mininterval=2):
        pixels = np.stack([unpng(image) for image in images[start : start + batch_size]])
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        posterior = pipeline.vae.encode(tensor.to(pipeline.vae.device, pipeline.vae.dtype)).latent_dist
        means.append(posterior.mean.float().cpu())
        stds.append(posterior.std.float().cpu())
    return torch.cat(means), torch.cat(stds)


def write_features(
    images: list[str], prompts: Path | str, columns: dict[str, str], config: Model, caption: str, out: Path | str
) -> None:
    """Encode shards of images and their captions.

    columns: role -> image column (`unsafe`: `unsafe_image`); caption: the prompt column of `prompts` to train on.
    Raises SafetyDPOError when images and prompts do not belong together.
    """
    rows = pd.concat([read_parquet(path) for path in images], ignore_index=True)
    key = "pair_id" if "pair_id" in rows else "prompt_id"
    texts = read_parquet(prompts, [key, caption]).set_index(key)[caption]
    missing = set(rows[key]) - set(texts.index)
    if missing:
        raise SafetyDPOError(
            f"{images[0]} has {key} {min(missing)}, which {prompts} lacks: delete the images and rerun."
        )
    captions = list(texts.loc[rows[key]])
    pipeline = load_pipeline(config)
    pipeline.vae.to(torch.float32)  # SDXL's overflows in half precision
    tensors = {}
    for role, column in columns.items():
        tensors[f"{role}_mean"], tensors[f"{role}_std"] = encode_images(pipeline, list(rows[column]), config.batch_size)
    distinct = [*dict.fromkeys(c for c in captions if c), ""]
    tensors |= encode_prompts(pipeline, distinct)
    index = {text: i for i, text in enumerate(distinct)}
    tensors["caption"] = torch.tensor([index[c] for c in captions])
    header = made_by("features", model=config.id, columns=columns, caption=caption)
    header |= {"ids": json.dumps(list(rows[key])), "model": config.id}
    write_safetensors(tensors, out, header)
