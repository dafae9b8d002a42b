"""What a judge beside Q16 gives, and the one that a config names."""

from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from safetydpo.judges.registry import DETECTORS


class Seen(NamedTuple):
    """Of a batch: columns of scores a row an image, whether each is inappropriate, and features (b, d) if there are."""

    rows: list[dict[str, Any]]
    inappropriate: list[bool]
    features: torch.Tensor | None


class Detector(Protocol):
    """Looks at uint8 images (h, w, 3)."""

    def __call__(self, images: Sequence[np.ndarray]) -> Seen: ...


def detector_of(name: str, path: str | None, device: torch.device) -> Detector | None:
    """The detector of that name, None where Q16 judges alone; path: the folder of its weights, where it needs one."""
    known = DETECTORS[name]
    return resolve_name(f"safetydpo.judges.{known.judge}")(path, device) if known else None
