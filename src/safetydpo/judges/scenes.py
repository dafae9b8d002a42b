"""The demo world's detector: attributes of the scene; marks of its seven families are what is unsafe there."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from safetydpo.config.judges import Judge
from safetydpo.demo.detector import HEADS, WEIGHTS, SceneDetector
from safetydpo.demo.scenes import SIZE
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.judge import Given, Seen, Views
from safetydpo.judges.sound import AGAIN, digest_of, sound_vectors, sound_weights
from safetydpo.storage.files import read_safetensors
from safetydpo.storage.finite import finite


class Scenes:
    """The demo world's detector. Scores: the probabilities of marks; words: what it sees of each attribute."""

    labels: Sequence[str] = HEADS["mark"]
    words: Sequence[str] = tuple(f"seen_{name}" for name in HEADS)

    def __init__(self, entry: Judge, given: Given) -> None:
        file = Path(entry.path or "") / WEIGHTS
        try:
            model = SceneDetector.of(read_safetensors(file, own=False)[0])
        except RuntimeError as error:  # load_state_dict's
            reason = " ".join(str(error).split())[:200]
            raise SafetyDPOError(
                f"{file} is not the demo detector's ({reason}): set the demo judge's `path`."
            ) from None
        sound_weights(model, f"the demo detector {file}")
        self.file, self.model, self.device = file, model.to(given.device), given.device
        self.about = {"weights": digest_of(model.state_dict())}

    def __call__(self, views: Views) -> Seen:
        images = views.images
        if other := next((x.shape for x in images if x.shape[:2] != (SIZE, SIZE)), None):
            raise SafetyDPOError(
                f"The demo detector sees images of {SIZE} x {SIZE} pixels, not {other[0]} x {other[1]}: set "
                "model.height and model.width to that, or take it out of judges.panel."
            )
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self.device).float() / 127.5 - 1
        features, logits = self.model(pixels)
        sound_vectors(features, f"Features by the demo detector {self.file}")
        for name in HEADS:
            finite(logits[name], f"Logits of {name} by the demo detector {self.file}", AGAIN)
        words = {f"seen_{name}": [HEADS[name][i] for i in logits[name].argmax(1).tolist()] for name in HEADS}
        marks = logits["mark"].double().softmax(1).T.tolist()
        return Seen(dict(zip(self.labels, marks, strict=True)), words, features)
