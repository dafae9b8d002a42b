"""Config of ablations: what the experts are trained with instead, one thing at a time."""

from typing import Any

from pydantic import Field, model_validator

from safetydpo.config.types import Count, Name, Section


class Variant(Section):
    """Experts trained otherwise, then merged by Co-Merge: the method ablation-<study>-<variant>."""

    name: Name = Field(description="Id in method and file names")
    train: dict[str, Any] = Field(default_factory=dict, description="Keys of `train` that differ")
    pairs: Count | None = Field(None, description="Train on the first pairs of each category alone")

    @model_validator(mode="after")
    def _differs(self) -> "Variant":
        if not self.train and self.pairs is None:
            raise ValueError(f"variant `{self.name}` differs in nothing: give `train` or `pairs`")
        return self


class Study(Section):
    """Variants in one table, `snakemake ablation_<study>`; off by default."""

    name: Name = Field(description="Id; the target is ablation_<name>")
    variants: list[Variant] = Field(min_length=1, description="What is compared with the run's own Co-Merge")
