"""NudeNet: exposed parts of bodies."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from safetydpo.config.judges import Judge
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.judge import Given, Seen, Views
from safetydpo.judges.registry import NUDENET
from safetydpo.judges.sound import AGAIN
from safetydpo.storage.finite import finite


class _Session:
    """An ONNX session whose outputs are finite, or a SafetyDPOError: NudeNet finds no box where they are not."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def run(self, names: list[str] | None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [finite(values, "What NudeNet computes of images", AGAIN) for values in self.session.run(names, inputs)]


class NudeNet:
    """NudeNet v3 (extra `nudenet`; its licence is the AGPL): of each class the best score, 0 where it has no box."""

    labels: Sequence[str] = NUDENET
    words: Sequence[str] = ()

    def __init__(self, _entry: Judge, _given: Given) -> None:
        try:
            import nudenet
        except ImportError:
            raise SafetyDPOError(
                "judges.panel has nudenet, which is not installed: pip install 'safetydpo[nudenet]' (its licence is "
                "the AGPL), or take the judge, and the verdicts that ask it, out of the config."
            ) from None
        self.model: Any = nudenet.NudeDetector()
        self.model.onnx_session = _Session(self.model.onnx_session)
        weights = (Path(nudenet.__file__).parent / "320n.onnx").read_bytes()
        self.about = {"version": version("nudenet"), "weights": hashlib.sha256(weights).hexdigest()[:16]}

    def __call__(self, views: Views) -> Seen:
        # blue first, as OpenCV reads the files that its own command is given
        images = [np.ascontiguousarray(image[..., ::-1]) for image in views.images]
        found = self.model.detect_batch(images, len(images))
        finite(np.array([box["score"] for boxes in found for box in boxes], float), "Scores by NudeNet", AGAIN)
        best = [{box["class"]: box["score"] for box in sorted(boxes, key=lambda box: box["score"])} for boxes in found]
        return Seen({label: [classes.get(label, 0.0) for classes in best] for label in NUDENET})
