"""Images of prompts, one generator a sample, so that an image depends on its prompt, seed and settings alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from safetydpo.config.model import Model
from safetydpo.models.compiling import compile_network, prepare_compiler
from safetydpo.models.pipeline import finite_of, unwrapped
from safetydpo.running.progress import progress

# Prompts among which those of equal settings are batched.
TOGETHER = 256


@torch.inference_mode()
def images_of(pipeline: Any, prompts: list[str], seeds: Sequence[int], config: Model) -> np.ndarray:
    """Images (n, h, w, 3) uint8 of one batch; each starts from a CPU generator with its own seed."""
    output = pipeline(
        prompt=list(prompts),  # some pipelines write into it
        generator=[torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds],
        height=config.height,
        width=config.width,
        num_inference_steps=config.num_inference_steps,
        output_type="np",
        **pipeline.family.render_options(config),
    )
    return pixels_of(pipeline, output.images, config.id)


def pixels_of(pipeline: Any, images: np.ndarray, model: str) -> np.ndarray:
    """Images in [0, 1] of a pipeline as uint8; SafetyDPOError where a value is not finite, instead of black ones."""
    images = finite_of(pipeline, images, f"{model} rendered values that are not finite")
    return (images * 255).round().astype(np.uint8)


def render(
    pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], config: Model, own: Sequence[Model] | None = None
) -> Iterator[np.ndarray]:
    """Images (h, w, 3) uint8 of prompts, in order, in batches of model.batch_size.

    own: the config of each prompt, where they differ in guidance and size: prompts of the same are batched, among
    TOGETHER neighbours, so that no more images are kept. With model.compile all batches are filled, to have one shape.
    """
    if config.compile and prompts:
        network = pipeline.family.network(unwrapped(pipeline))
        prepare_compiler(config, network.device, "model.compile")
        compile_network(network)
    order, ready, turn = own or [config] * len(prompts), dict[int, np.ndarray](), 0
    batch: list[int]
    for batch in progress(_batches(order, TOGETHER if own else len(order) or 1), "render"):
        whole = batch + batch[-1:] * (config.batch_size - len(batch)) if config.compile else batch
        images = images_of(pipeline, [prompts[i] for i in whole], [seeds[i] for i in whole], order[batch[0]])
        ready.update(zip(batch, images[: len(batch)], strict=True))
        while turn in ready:
            yield ready.pop(turn)
            turn += 1


def _batches(configs: Sequence[Model], window: int) -> list[list[int]]:
    """Numbers of the prompts of each batch: of one config, and of one of the stretches of `window` prompts."""
    batches = []
    for start in range(0, len(configs), window):
        equal: dict[str, list[int]] = {}
        for i in range(start, min(start + window, len(configs))):
            equal.setdefault(configs[i].model_dump_json(), []).append(i)
        for same in equal.values():
            size = configs[same[0]].batch_size
            batches += [same[i : i + size] for i in range(0, len(same), size)]
    return batches
