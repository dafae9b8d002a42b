"""Images of prompts, one generator a sample, so that an image depends on its prompt and seed alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from safetydpo.config import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.progress import progress


@torch.inference_mode()
def render(pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], config: Model) -> Iterator[np.ndarray]:
    """Images (h, w, 3) uint8 of prompts, in order; each starts from a CPU generator with its own seed."""
    for start in progress(range(0, len(prompts), config.batch_size), "render"):
        part = slice(start, start + config.batch_size)
        output = pipeline(
            prompt=list(prompts[part]),
            generator=[torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds[part]],
            height=config.height,
            width=config.width,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            output_type="np",
        )
        if not np.isfinite(output.images).all():
            raise SafetyDPOError(f"{config.id} rendered values that are not finite: set model.dtype to float32.")
        yield from (output.images * 255).round().astype(np.uint8)
