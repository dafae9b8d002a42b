"""The demo world's detector: attributes of the scene; marks of its seven families are inappropriate."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from safetydpo.demo.detector import HEADS, WEIGHTS, SceneDetector
from safetydpo.demo.scenes import FAMILIES, SIZE
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.detector import Seen
from safetydpo.judges.sound import AGAIN, sound_vectors, sound_weights
from safetydpo.storage.files import read_safetensors
from safetydpo.storage.finite import finite


class Scenes:
    """The demo world's detector: attributes of the scene, marks of its seven families are inappropriate."""

    def __init__(self, path: str | None, device: torch.device) -> None:
        file = Path(path or "") / WEIGHTS
        try:
            model = SceneDetector.of(read_safetensors(file, own=False)[0])
        except RuntimeError as error:  # load_state_dict's
            reason = " ".join(str(error).split())[:200]
            raise SafetyDPOError(f"{file} is not the demo detector's ({reason}): set judges.detector_path.") from None
        sound_weights(model, f"the demo detector {file}")
        self.file, self.model, self.device = file, model.to(device), device

    def __call__(self, images: Sequence[np.ndarray]) -> Seen:
        if other := next((x.shape for x in images if x.shape[:2] != (SIZE, SIZE)), None):
            raise SafetyDPOError(
                f"The demo detector sees images of {SIZE} x {SIZE} pixels, not {other[0]} x {other[1]}: set "
                "model.height and model.width to that, or judges.detector to another."
            )
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self.device).float() / 127.5 - 1
        features, logits = self.model(pixels)
        sound_vectors(features, f"Features by the demo detector {self.file}")
        for name in HEADS:
            finite(logits[name], f"Logits of {name} by the demo detector {self.file}", AGAIN)
        best = {name: logits[name].argmax(1).tolist() for name in HEADS}
        rows = [{f"seen_{name}": HEADS[name][best[name][i]] for name in HEADS} for i in range(len(images))]
        return Seen(rows, [row["seen_mark"] in FAMILIES for row in rows], features)
