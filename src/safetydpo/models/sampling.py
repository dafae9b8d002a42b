"""Images of prompts, one generator a sample, so that an image depends on its prompt and seed alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from safetydpo.config.model import Model
from safetydpo.models.pipeline import finite_of
from safetydpo.running.progress import progress


@torch.inference_mode()
def images_of(pipeline: Any, prompts: list[str], seeds: Sequence[int], config: Model) -> np.ndarray:
    """Images (n, h, w, 3) uint8 of one batch; each starts from a CPU generator with its own seed."""
    output = pipeline(
        prompt=prompts,
        generator=[torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds],
        height=config.height,
        width=config.width,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        output_type="np",
    )
    return pixels_of(pipeline, output.images, config.id)


def pixels_of(pipeline: Any, images: np.ndarray, model: str) -> np.ndarray:
    """Images in [0, 1] of a pipeline as uint8; SafetyDPOError where a value is not finite, instead of black ones."""
    images = finite_of(pipeline, images, f"{model} rendered values that are not finite")
    return (images * 255).round().astype(np.uint8)


def render(pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], config: Model) -> Iterator[np.ndarray]:
    """Images (h, w, 3) uint8 of prompts, in order, in batches of model.batch_size."""
    for start in progress(range(0, len(prompts), config.batch_size), "render"):
        part = slice(start, start + config.batch_size)
        yield from images_of(pipeline, list(prompts[part]), seeds[part], config)
