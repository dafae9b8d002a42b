"""Config of merging: how experts become one LoRA."""

from typing import Annotated

from pydantic import Field

from safetydpo.config.types import Count, OneOf, Section
from safetydpo.merging.registry import STRATEGIES


class Merge(Section):
    """Joining the experts, and choosing the strength of the result on tuning prompts."""

    strategies: list[Annotated[str, OneOf(STRATEGIES)]] = Field(
        ["co-merge"], min_length=1, description="Ways to merge; each becomes the method merged-<strategy>"
    )
    calibration_prompts: Count = Field(16, description="Prompts per category for co-activation statistics")
    calibration_timesteps: list[Annotated[int, Field(ge=0, le=999)]] = Field(
        [100, 300, 500, 700, 900],
        min_length=1,
        description="Timesteps at which each calibration prompt is an input",
    )
    rank: Annotated[int, Field(ge=0, le=10**4)] = Field(
        0, description="SVD to this rank; 0: exact for factored strategies"
    )
    density: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Share of values that ties, dare-ties and magnitude-prune keep"
    )
