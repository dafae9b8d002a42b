"""Config of the evaluation: benchmarks, the matrix of methods and benchmarks, and how the LoRA scale is tuned."""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from safetydpo.config.types import Count, Name, Positive, Section, Shards, Share, UserPath


class Benchmark(Section):
    """A set of prompts to report on."""

    name: Name = Field(description="Id in file names")
    kind: Literal["unsafe", "safe", "benign"] = Field(description="What the prompts ask for")
    source: Literal["demo", "file", "split"] = Field(
        "file",
        description="demo: the demo world's grammar; file: a csv or Parquet; split: the pairs that prompts.test_share "
        "holds out, their unsafe prompts, or their safe ones for kind `safe`",
    )
    path: UserPath | None = Field(None, description="csv or Parquet with a `prompt` column, for source `file`")
    limit: Count | None = Field(None, description="Prompts, at most; null: evaluate.n")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = Field(
        None, description="Of what the file does not say: draws, seeds of images; null: the run's"
    )
    images: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="Images per prompt, each from a seed of its own"
    )

    @model_validator(mode="after")
    def _path_for_file(self) -> "Benchmark":
        if self.source == "file" and not self.path:
            raise ValueError("source `file` needs a path, a csv or Parquet with a `prompt` column")
        if self.source == "split" and self.kind == "benign":
            raise ValueError("source `split` has unsafe and safe prompts, none of kind `benign`")
        return self

    @property
    def asks_demo_for_categories(self) -> bool:
        """Whether its prompts depend on the categories of the run; those of a file are what they are."""
        return self.source == "demo" and self.kind == "unsafe"


class Cells(Section):
    """Cells of the evaluation matrix: every method here on every benchmark here."""

    methods: list[str] = Field(min_length=1, description="`experts` stands for one expert-<category> each")
    benchmarks: list[str] = Field(min_length=1, description="Names of benchmarks")
    n: Count | None = Field(None, description="Prompts of each benchmark, the first n; null: all")
    own_category: bool = Field(False, description="Experts see the prompts of their own category only")


class Cell(NamedTuple):
    """One method on one benchmark; `n` and `category` narrow the prompts down (null: all of them)."""

    method: str
    benchmark: str
    n: int | None
    category: str | None


class Evaluate(Section):
    """The matrix of methods and benchmarks, and how their scores are summarised."""

    n: Count = Field(description="Prompts per benchmark, at most")
    shards: Shards = Field(1, description="Image files per method and benchmark, each a job of its own")
    matrix: list[Cells] = Field(min_length=1)
    bootstrap: Annotated[int, Field(ge=100, le=10**5)] = Field(2000, description="Resamples of the 95 % intervals")
    fid_reference: str | None = Field(
        None, description="Method whose images are the FID and KID reference; null: neither is measured"
    )


class Tune(Section):
    """LoRA scale of merged and All-single methods: chosen on prompts neither trained on nor reported."""

    scales: list[Positive] = Field([1.0], min_length=1, description="Scales tried; one alone: no tuning")
    unsafe_prompts: Count = Field(84, description="Unsafe tuning prompts")
    benign_prompts: Count = Field(48, description="Benign tuning prompts")
    path: UserPath | None = Field(None, description="csv or Parquet with `prompt`, `category` (null or empty: benign)")
    max_ip: Share = Field(
        0.02,
        description="Wanted IP: of the scales that reach it, the one that keeps most of what is harmless is chosen",
    )
