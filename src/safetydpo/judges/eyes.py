"""All judges of a config: their scores as they are, CLIPScore, features for FID.

Judges are made once from config and called with batches of uint8 images (b, h, w, 3).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch

from safetydpo.config.judges import Looks
from safetydpo.demo.scenes import SIZE
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.clip import ClipEyes
from safetydpo.judges.inception import Inception
from safetydpo.judges.judge import Given, JudgeOfImages, Views
from safetydpo.judges.sound import AGAIN, unit_vectors
from safetydpo.judges.verdicts import column


class Eyes:
    """All judges of a config; `look` gives one row of scores per image.

    own: whether pickles (Q16's prompts, heads) are the run's copies, not the user's files; journals: the folder in
    which answers of servers are kept.
    """

    def __init__(self, config: Looks, device: torch.device, own: bool = True, journals: Path | str = ".") -> None:
        clip = cache(lambda name: ClipEyes(name, device, config.dtype))
        self.clip = clip(config.clip_score)
        given = Given(device, config.dtype, clip, own, Path(journals))
        self.judges: dict[str, JudgeOfImages] = {
            entry.name: resolve_name(f"safetydpo.judges.{entry.kind.judge}")(entry, given) for entry in config.panel
        }
        # those of whom one may expect that no two images get the very same numbers
        self.sure = [entry.name for entry in config.panel if entry.kind.number and not entry.kind.may_fail]
        self.inception = Inception(device, config.inception_path) if config.features == "inception" else None
        self.from_judge = config.features == "detector"

    @property
    def words(self) -> set[str]:
        """Columns of `look` that hold texts."""
        return {name for judge in self.judges.values() for name in judge.words}

    @property
    def about(self) -> dict[str, dict[str, str]]:
        """What each judge is."""
        return {name: judge.about for name, judge in self.judges.items()}

    @torch.inference_mode()
    def look(self, images: list[np.ndarray], prompts: Sequence[str]) -> list[dict[str, Any]]:
        """Per image: every judge's scores and words, clip_score (100 cos), embedding (CLIP's), features (for FID and
        KID). A score is None where a judge gave no verdict.
        """
        views = Views(images)
        embedding = unit_vectors(views.projected(self.clip, exact=False), self.clip.whose)
        features = self.inception(images) if self.inception else embedding
        columns: dict[str, Any] = {}
        for name, judge in self.judges.items():
            seen = judge(views)
            columns |= {column(name, label): values for label, values in seen.scores.items()}
            columns |= seen.words
            if self.from_judge and seen.features is not None:
                features = seen.features
        columns["clip_score"] = (100 * (embedding * self.clip.texts(list(prompts))).sum(1)).tolist()
        columns["embedding"], columns["features"] = embedding.cpu().numpy(), features.float().cpu().numpy()
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    @torch.inference_mode()
    def check(self) -> None:
        """SafetyDPOError where a judge does not see: it computes no numbers, or the same of black as of white."""
        views = [np.full((SIZE, SIZE, 3), gray, np.uint8) for gray in (0, 255)]
        for judge in self.judges.values():
            if own_check := getattr(judge, "check", None):
                own_check(Views(views))
        rows = self.look(views, ["a dog", "two red houses"])
        seen = {
            f"{self.clip.name} in images": self.clip.images(views),
            f"{self.clip.name} in prompts": self.clip.texts(["a dog", "two red houses"]),
            "the judge of FID's features": torch.from_numpy(np.stack([row["features"] for row in rows])),
        }
        for name, judge in self.judges.items():
            if clip := getattr(judge, "clip", None):
                seen[f"{clip.name} of {name} in images"] = clip.images(views)
            elif name in self.sure:  # a small one of its probabilities tells more than a large one
                columns = [column(name, label) for label in ("", *judge.labels)]
                scores = torch.tensor([[row[key] for key in columns] for row in rows], dtype=torch.float64)
                seen[name] = scores.log()
        for judge, (one, other) in seen.items():
            if torch.allclose(one, other, rtol=0, atol=1e-6):
                raise SafetyDPOError(f"{judge} sees no difference between two that have nothing in common; {AGAIN}.")
