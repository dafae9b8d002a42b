"""Config of the evaluation: benchmarks, the matrix of methods and benchmarks, and how the LoRA scale is tuned."""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from safetydpo.config.types import Count, Name, Positive, Section, Shards, Share, UserPath

ALL = "all"


class Benchmark(Section):
    """A set of prompts to report on."""

    name: Name = Field(description="Id in file names")
    kind: Literal["unsafe", "safe", "benign", "over-refusal"] = Field(
        description="What the prompts ask for; benign: harmless things that nobody trained on; over-refusal: harmless "
        "ones whose words alarm (OVERT), of a file"
    )
    source: Literal["demo", "file", "split"] = Field(
        "file",
        description="demo: the demo world's grammar; file: a csv, JSON or Parquet; split: the pairs that "
        "prompts.test_share holds out, their unsafe prompts, or their safe ones for kind `safe`",
    )
    path: UserPath | None = Field(
        None, description="csv, JSON (lines too) or Parquet with a column of prompts, for source `file`"
    )
    column: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Its column of prompts; null: `prompt`, or the one that published files of that kind have"
    )
    row_settings: bool = Field(
        False,
        description="Render each prompt with the guidance and size of its row (I2P: evaluation_guidance, "
        "sd_image_height, sd_image_width), the model's own where it says nothing",
    )
    limit: Count | None = Field(None, description="Prompts, at most; null: evaluate.n")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = Field(
        None, description="Of what the file does not say: draws, seeds of images; null: the run's"
    )
    images: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="Images per prompt, each from a seed of its own"
    )

    @model_validator(mode="after")
    def _of_its_source(self) -> "Benchmark":
        if self.source == "file" and not self.path:
            raise ValueError("source `file` needs a path, a csv, JSON or Parquet with a column of prompts")
        if self.source != "file" and (self.column or self.row_settings):
            raise ValueError(f"`column` and `row_settings` are of files, not of source `{self.source}`")
        if self.source == "split" and self.kind not in ("unsafe", "safe"):
            raise ValueError(f"source `split` has unsafe and safe prompts, none of kind `{self.kind}`")
        if self.source == "demo" and self.kind == "over-refusal":
            raise ValueError("the demo world has no prompts of kind `over-refusal`: give a file")
        return self

    @property
    def asks_demo_for_categories(self) -> bool:
        """Whether its prompts depend on the categories of the run; those of a file are what they are."""
        return self.source == "demo" and self.kind == "unsafe"


class Cells(Section):
    """Cells of the evaluation matrix: every method here on every benchmark here."""

    methods: list[str] = Field(min_length=1, description="`experts` stands for one expert-<category> each")
    benchmarks: list[str] = Field(min_length=1, description="Names of benchmarks; `all` alone stands for each of them")
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

    n: Count | None = Field(description="Prompts per benchmark, at most; null: all of a file")
    shards: Shards = Field(1, description="Image files per method and benchmark, each a job of its own")
    matrix: list[Cells] = Field(min_length=1)
    bootstrap: Annotated[int, Field(ge=100, le=10**5)] = Field(2000, description="Resamples of the 95 % intervals")
    fid_reference: UserPath | None = Field(
        None,
        description="What FID and KID are measured to: a method, whose images of the same prompts, or a path, the real "
        "images of a folder or the moments (`mu`, `sigma`) of a .npz; null: neither is measured",
    )


class Tune(Section):
    """LoRA scale of merged and All-single methods: chosen on prompts neither trained on nor reported."""

    scales: list[Positive] = Field(
        [1.0], min_length=1, description="Scales tried, or the ends between which they are sought; one alone: no tuning"
    )
    tries: Annotated[int, Field(ge=0, le=50)] = Field(
        0,
        description="Scales tried between the smallest and the largest, by halving ratios beside the best so far; 0: "
        "those listed",
    )
    unsafe_prompts: Count = Field(84, description="Unsafe tuning prompts")
    benign_prompts: Count = Field(48, description="Benign tuning prompts")
    path: UserPath | None = Field(
        None, description="csv, JSON or Parquet with `prompt`, `category` (null or empty: benign)"
    )
    max_ip: Share = Field(
        0.02,
        description="Wanted IP: the scale is chosen that keeps most of what is harmless, less what of its IP is above "
        "this",
    )
