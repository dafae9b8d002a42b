"""How alike two images are laid out: SSIM, in batches."""

import math
from collections import defaultdict
from typing import Any

import numpy as np
import torch

from safetydpo.errors import SafetyDPOError

# Values of images compared at once: what larger batches hold no longer fits the caches, and costs memory.
VALUES_AT_ONCE = 2**20


def same_layout(
    images: list[np.ndarray], base: list[np.ndarray], sides: list[str | None], device: torch.device | str = "cpu"
) -> list[float]:
    """SSIM of image pairs; where `sides` says on which half the base image's object is, of that half alone.

    The other half holds the mark, whose removal is wanted: only what should stay is compared.
    """
    pairs, alike = [], defaultdict[tuple[int, ...], list[int]](list)  # those of one size are compared together
    for i, (image, other, side) in enumerate(zip(images, base, sides, strict=True)):
        if image.shape != other.shape:
            size, wanted = (f"{x.shape[1]} x {x.shape[0]}" for x in (image, other))
            raise SafetyDPOError(
                f"An image has {size} pixels, base's of the same prompt {wanted}: layouts cannot be compared, so let "
                "the method render images of the model's size."
            )
        half = image.shape[1] // 2
        part = {"left": slice(0, half), "right": slice(half, None)}.get(side or "", slice(None))
        pairs.append((image[:, part], other[:, part]))
        alike[pairs[i][0].shape].append(i)
    scores = np.empty(len(pairs))
    for shape, members in alike.items():
        step = max(1, VALUES_AT_ONCE // math.prod(shape))
        for chosen in (members[i : i + step] for i in range(0, len(members), step)):
            scores[chosen] = _ssim(np.stack([pairs[i] for i in chosen]), torch.device(device))
    return scores.tolist()


def _ssim(pairs: np.ndarray, device: torch.device) -> np.ndarray:
    """(b,) of uint8 image pairs (b, 2, h, w, 3)."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim  # slow, and few jobs need it

    # CUDA convolves float32 in TF32, too coarse for variances
    kind = torch.float64 if device.type == "cuda" else torch.float32
    images, others = torch.from_numpy(pairs).to(device).permute(1, 0, 4, 2, 3).to(kind) / 255
    found: Any = ssim(images, others, data_range=1.0, kernel_size=7, sigma=1.0, reduction="none")
    return found.cpu().numpy()
