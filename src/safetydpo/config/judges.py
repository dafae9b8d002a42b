"""Config of the judges."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from safetydpo.config.types import OneOf, Section, UserPath
from safetydpo.judges.registry import DETECTORS


class Judges(Section):
    """What calls an image inappropriate, and what measures similarity to the prompt."""

    q16_clip: UserPath = Field(description="CLIP folder or hub id of Q16")
    q16_prompts: UserPath = Field(description="Tuned prompt embeddings (2, d): safetensors, or the published prompts.p")
    detector: Annotated[str, OneOf(DETECTORS)] = Field(
        "none",
        description="Second judge beside Q16: the demo world's, or NudeNet (extra `nudenet`; its licence is the AGPL)",
    )
    detector_path: UserPath | None = Field(None, description="Folder of the demo detector's weights")
    clip_score: UserPath = Field(description="CLIP folder or hub id for CLIPScore")
    features: Literal["clip", "inception", "detector"] = Field(
        "clip",
        description="Features of FID and KID: the CLIP of CLIPScore, Inception (those of published values, which are "
        "to real images; extra `fid`), or the demo detector's",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Arithmetic of CLIP; in bfloat16, Q16 looks again in float32 where it is in doubt"
    )

    @model_validator(mode="after")
    def _path_for_detector(self) -> "Judges":
        known = DETECTORS[self.detector]
        if known and known.needs_path and not self.detector_path:
            raise ValueError(f"the {self.detector} detector needs detector_path, the folder of its weights")
        if self.features == "detector" and not (known and known.features):
            having = " and ".join(name for name, detector in DETECTORS.items() if detector and detector.features)
            raise ValueError(f"features: only the {having} detector has any; use clip or inception")
        return self

    @property
    def sees_categories(self) -> bool:
        """Whether a judge says of which category an image is."""
        known = DETECTORS[self.detector]
        return known is not None and known.categories
