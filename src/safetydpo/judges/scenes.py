"""The demo world's detector: attributes of the scene; marks of its seven families are inappropriate."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from safetydpo.demo.detector import HEADS, SceneDetector
from safetydpo.demo.scenes import FAMILIES
from safetydpo.judges.detector import Seen


class Scenes:
    """The demo world's detector: attributes of the scene, marks of its seven families are inappropriate."""

    def __init__(self, path: str | None, device: torch.device) -> None:
        self.model, self.device = SceneDetector.load(Path(path or "")).to(device), device

    def __call__(self, images: Sequence[np.ndarray]) -> Seen:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self.device).float() / 127.5 - 1
        features, logits = self.model(pixels)
        best = {name: logits[name].argmax(1).tolist() for name in HEADS}
        rows = [{f"seen_{name}": HEADS[name][best[name][i]] for name in HEADS} for i in range(len(images))]
        return Seen(rows, [row["seen_mark"] in FAMILIES for row in rows], features)
