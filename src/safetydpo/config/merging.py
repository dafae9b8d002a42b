"""Config of merging: how experts become one LoRA."""

from typing import Annotated, Any

from pydantic import Field

from safetydpo.config.types import Count, OneOf, Positive, Section
from safetydpo.merging.registry import STRATEGIES


class Fusion(Section):
    """Fusion in closed form (MACE, arXiv 2403.06135): on each category's inputs what its expert does."""

    retain_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Weight of harmless inputs, on which the update is to do nothing, against a category's"
    )
    retain_prompts: Count = Field(96, description="Prompts of train.preserve that these inputs are of")
    ridge: Positive = Field(0.1, description="Added to the diagonal, as a share of its mean")


class Merge(Section):
    """Joining the experts, and choosing the strength of the result on tuning prompts."""

    strategies: list[Annotated[str, OneOf(STRATEGIES)]] = Field(
        ["co-merge"],
        min_length=1,
        description="Ways to merge; each becomes the method merged-<strategy>. The first is the run's own: that of "
        "ablations, and of rounds of harden",
    )
    calibration_prompts: Count = Field(16, description="Prompts per category for the statistics of co-merge and fusion")
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
    fusion: Fusion = Field(default_factory=Fusion)  # type: ignore[arg-type]

    @property
    def own(self) -> str:
        """The run's own merge."""
        return self.strategies[0]

    def asked(self, strategy: str) -> dict[str, Any]:
        """What of this section a merge by a strategy depends on, beside its statistics."""
        own = {"fusion": {"retain_weight", "ridge"}} if strategy == "fusion" else {}
        return self.model_dump(include={"rank": True, "density": True, **own})
