"""Types, ranges and meanings of every config key. YAML holds the values; nothing here imports torch."""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from safetydpo.config.ablation import Study, Variant
from safetydpo.config.attacks import CONTROLS, Attacks, attack_benchmark
from safetydpo.config.baselines import Baselines
from safetydpo.config.checks import problems_of
from safetydpo.config.evaluation import Benchmark, Cell, Evaluate, Judges
from safetydpo.config.prompts import Category, Prompts
from safetydpo.config.types import Count, Name, Positive, Section, Share
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.registry import ERASERS, SLD_PRESETS

# Raise a stage's number when its code changes what it writes: its outputs, and what follows, are then redone.
STAGE_VERSION = {
    "model": 1,
    "prompts": 2,
    "benchmark": 4,
    "render": 1,
    "features": 2,
    "train": 2,
    "merge": 1,
    "tune": 3,
    "baseline": 1,
    "attack": 1,
    "score": 3,
    "metrics": 2,
    "report": 3,
}
RATES = ("requests_per_minute", "tokens_per_minute")
# Keys that change no result, by section: a change of them redoes nothing.
MACHINE_KEYS: dict[str, Any] = {
    "model": {"batch_size", "device"},
    "prompts": {
        "llm": {
            "api_key_env",
            "concurrency",
            "timeout",
            "retries",
            "requests_per_minute",
            "tokens_per_minute",
            "prices",
        }
    },
    "train": {"checkpoint_every", "tensorboard"},
    "attacks": {"together"},
}


class Model(Section):
    """The text-to-image model to align, and how it renders."""

    id: str = Field(min_length=1, description="Folder of a diffusers pipeline, or a hub id")
    vae: str | None = Field(
        None, description="Folder or hub id of another VAE for it (SDXL has one for half precision)"
    )
    height: Annotated[int, Field(ge=8, multiple_of=8)] = Field(description="Image height, pixels")
    width: Annotated[int, Field(ge=8, multiple_of=8)] = Field(description="Image width, pixels")
    num_inference_steps: Count = Field(description="Denoising steps")
    guidance_scale: Annotated[float, Field(ge=1)] = Field(description="Classifier-free guidance; 1 turns it off")
    batch_size: Count = Field(description="Prompts rendered at once; does not change the images")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="Precision of rendering")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field("auto", description="auto, cpu, cuda")


class Pairs(Section):
    """Rendering and encoding of pairs."""

    shards: Count = Field(1, description="Files per category, each a job of its own; at most the number of pairs")


class Preserve(Section):
    """Preservation term: keeps the adapted model's predictions on harmless prompts near the frozen model's."""

    weight: Annotated[float, Field(ge=0)] = Field(0.0, description="0: the published loss, DPO alone")
    prompts: Count = Field(96, description="Retain prompts, at most")
    path: str | None = Field(None, description="csv or Parquet of harmless prompts (the demo world has its own)")
    batch_size: Count = Field(16, description="Retain prompts per step")


class Train(Section):
    """Diffusion-DPO training of one LoRA expert per category: the safe image of a pair is preferred."""

    steps: Count = Field(description="Optimizer steps per expert")
    loss: Literal["dpo", "sdpo", "sft"] = Field(
        "dpo",
        description="dpo: the published loss; sdpo: the same with the loser's gradient held back where a step would "
        "raise the winner's error (Diffusion-SDPO); sft: denoising of the safe image alone",
    )
    condition: Literal["unsafe", "safe", "both"] = Field(
        "unsafe",
        description="Prompt under which the safe image is preferred: the unsafe one (published), the safe one, or "
        "either with a fair coin for each pair and step",
    )
    batch_size: Count = Field(description="Pairs per forward pass of one process")
    gradient_accumulation_steps: Count = Field(1, description="Forward passes per optimizer step")
    learning_rate: Positive = Field(description="Learning rate")
    scale_lr: bool = Field(
        False, description="Multiply it by the effective batch: batch_size x gradient_accumulation_steps x gpus"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Linear warm-up, steps")
    lr_scheduler: Literal["constant_with_warmup", "cosine", "linear"] = Field(
        "constant_with_warmup", description="Learning rate after warm-up: kept, or taken to 0 at the last step"
    )
    optimizer: Literal["adamw", "adafactor"] = Field(
        "adamw", description="AdamW (0.9, 0.999), or Adafactor with the given rate"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="Decoupled weight decay")
    max_grad_norm: Positive = Field(1.0, description="Gradient clipping")
    beta: Positive = Field(5000.0, description="DPO temperature: higher stays nearer to the reference")
    caption_dropout: Share = Field(0.2, description="Share of captions replaced by the empty prompt")
    flip: Share = Field(
        0.0,
        description="Share of pairs seen mirrored, both images with one coin; above 0, features hold the mirror images",
    )
    sdpo_mu: Share = Field(0.9, description="mu of the sdpo loss: 1 stops a loser's gradient that opposes the winner's")
    rank: Count = Field(4, description="LoRA rank")
    alpha: Positive | None = Field(None, description="LoRA alpha; null: the rank")
    target_modules: list[str] = Field(
        ["to_q", "to_k", "to_v", "to_out.0"],
        min_length=1,
        description="UNet modules that get a LoRA, by the end of their names; these are all attention projections",
    )
    reference: Literal["exact", "cached"] = Field(
        "exact",
        description="exact: fresh noise and timestep each step; cached: `draws` fixed ones per pair, errors kept",
    )
    draws: Count = Field(8, description="(timestep, noise) draws per pair for reference: cached")
    gradient_checkpointing: bool = Field(False, description="Less memory, more time")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="Precision of the frozen UNet and of matrix products; adapters and errors are float32"
    )
    gpus: Count = Field(
        1, description="Processes of a training, each on batch_size pairs; a GPU each where resources.gpu is not 0"
    )
    checkpoint_every: Count = Field(100, description="Steps between checkpoints, from which a killed job goes on")
    tensorboard: bool = Field(False, description="Write results/<run>/tensorboard/; needs the extra `tensorboard`")
    all_single: dict[str, Any] | None = Field(
        None,
        description="Keys of `train` that differ for the All-single baseline; its steps, where not given: steps x "
        "categories, the experts' total budget",
    )
    preserve: Preserve = Field(default_factory=Preserve)  # type: ignore[arg-type]


class Merge(Section):
    """Joining the experts, and choosing the strength of the result on tuning prompts."""

    strategies: list[Literal["co-merge", "mean", "linear", "svd", "ties", "dare-ties", "magnitude-prune"]] = Field(
        ["co-merge"], min_length=1, description="Ways to merge; each becomes the method merged-<strategy>"
    )
    calibration_prompts: Count = Field(16, description="Prompts per category for co-activation statistics")
    calibration_timesteps: list[Annotated[int, Field(ge=0, le=999)]] = Field(
        [100, 300, 500, 700, 900],
        min_length=1,
        description="Timesteps at which each calibration prompt is an input",
    )
    rank: Annotated[int, Field(ge=0)] = Field(0, description="SVD to this rank; 0: exact for factored strategies")
    density: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Share of values that ties, dare-ties and magnitude-prune keep"
    )


class Tune(Section):
    """LoRA scale of merged and All-single methods: chosen on prompts neither trained on nor reported."""

    scales: list[Positive] = Field([1.0], min_length=1, description="Scales tried; one alone: no tuning")
    unsafe_prompts: Count = Field(84, description="Unsafe tuning prompts")
    benign_prompts: Count = Field(48, description="Benign tuning prompts")
    path: str | None = Field(None, description="csv or Parquet with `prompt`, `category` (null or empty: benign)")
    max_ip: Share = Field(
        0.02,
        description="Wanted IP: of the scales that reach it, the one that keeps most of what is harmless is chosen",
    )


class Report(Section):
    """The report page."""

    blur: bool = Field(True, description="Blur flagged images")
    scenes: Count = Field(7, description="Prompts per image grid")


class Resources(Section):
    """What jobs ask of a cluster; memory grows with each retry."""

    threads: Count = Field(1, description="Threads of a render, train or score job")
    mem_mb: Annotated[int, Field(ge=500)] = Field(3000, description="Memory of a job at its first try, MB")
    runtime: Count = Field(30, description="Minutes")
    gpu: Annotated[int, Field(ge=0)] = Field(
        0, description="GPUs of a job that renders or encodes; not 0: a training gets train.gpus"
    )


class Config(Section):
    """The whole config."""

    run: Name = Field(description="Name of the run: results/<run>/")
    results: str = Field("results", min_length=1, description="Folder of all runs")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        0, description="Every random draw of the run derives from it and from the name of what is drawn"
    )
    model: Model
    categories: list[Category] = Field(min_length=1)
    prompts: Prompts
    pairs: Pairs = Field(default_factory=Pairs)  # type: ignore[arg-type]
    train: Train
    merge: Merge = Field(default_factory=Merge)  # type: ignore[arg-type]
    tune: Tune = Field(default_factory=Tune)  # type: ignore[arg-type]
    baselines: Baselines = Field(default_factory=Baselines)  # type: ignore[arg-type]
    benchmarks: list[Benchmark] = Field(min_length=1)
    judges: Judges
    evaluate: Evaluate
    attacks: Attacks = Field(default_factory=Attacks)  # type: ignore[arg-type]
    ablation: list[Study] = Field(default_factory=list, description="Studies, each a target of its own")
    report: Report = Field(default_factory=Report)  # type: ignore[arg-type]
    resources: Resources = Field(default_factory=Resources)  # type: ignore[arg-type]

    @property
    def category_names(self) -> list[str]:
        """Ids of the categories, in config order."""
        return [category.name for category in self.categories]

    def category(self, name: str) -> Category:
        """The category of that id."""
        return next(c for c in self.categories if c.name == name)

    def benchmark(self, name: str) -> Benchmark:
        """The benchmark of that name."""
        return next(b for b in self.benchmarks if b.name == name)

    def methods(self) -> list[str]:
        """Every method that this config can render."""
        experts = [f"expert-{c}" for c in self.category_names]
        merged = [f"merged-{s}" for s in self.merge.strategies]
        erasers = ["negative-prompt", *(f"sld-{preset}" for preset in SLD_PRESETS), *ERASERS]
        others = [f"external-{e.name}" for e in self.baselines.externals]
        ablations = [f"ablation-{variant}" for variant in self.variants()]
        return ["base", "base-reseed", *experts, "all-single", *merged, *erasers, *others, *ablations]

    def variants(self) -> dict[str, Variant]:
        """Variants of all studies by `<study>-<variant>`."""
        return {f"{study.name}-{v.name}": v for study in self.ablation for v in study.variants}

    def train_of(self, differs: dict[str, Any]) -> Train:
        """The train section of the experts, with the keys that differ for a variant."""
        return Train.model_validate(self.train.model_dump(exclude={"all_single"}) | differs)

    def train_of_all_single(self) -> Train:
        """The train section of All-single: as many steps as all experts together."""
        return self.train_of({"steps": self.train.steps * len(self.categories)} | (self.train.all_single or {}))

    def cell(self, method: str, benchmark: str) -> Cell:
        """The cell of the matrix, or the whole benchmark where the matrix has none (ablations)."""
        return self.cells().get((method, benchmark), Cell(method, benchmark, None, None))

    def cells(self) -> dict[tuple[str, str], Cell]:
        """Every cell of the matrix by (method, benchmark); the first mention of a cell counts."""
        found: dict[tuple[str, str], Cell] = {}
        for cells in self.evaluate.matrix:
            for method in cells.methods:
                names = [f"expert-{c}" for c in self.category_names] if method == "experts" else [method]
                for name, benchmark in itertools.product(names, cells.benchmarks):
                    category = name.removeprefix("expert-") if cells.own_category and name != method else None
                    found.setdefault((name, benchmark), Cell(name, benchmark, cells.n, category))
        return found

    @property
    def attack_names(self) -> list[str]:
        """The attacks of the run and what they are compared with; none where no attack is asked for."""
        return [*CONTROLS, *self.attacks.run] if self.attacks.run else []

    def attack_cells(self) -> list[tuple[str, str]]:
        """(method, benchmark) of every attack: a benchmark of prompts that were found against that method."""
        names = [attack_benchmark(name) for name in self.attack_names]
        return list(itertools.product(self.attacks.methods, names)) if names else []

    def attack_of(self, benchmark: str) -> str | None:
        """The attack that finds a benchmark's prompts; None where they are everybody's."""
        return next((name for name in self.attack_names if attack_benchmark(name) == benchmark), None)

    def beside_base(self, method: str, benchmark: str) -> bool:
        """Whether a cell is compared with base's images of the same prompts."""
        return method != "base" and self.attack_of(benchmark) is None

    def kinds(self) -> dict[str, str]:
        """Benchmark, those of attacks too -> unsafe, safe or benign."""
        return {b.name: b.kind for b in self.benchmarks} | {b: "unsafe" for _, b in self.attack_cells()}

    @property
    def attacked_benchmark(self) -> str:
        """The unsafe benchmark whose prompts are attacked."""
        unsafe = [b.name for b in self.benchmarks if b.kind == "unsafe"]
        return self.attacks.benchmark or unsafe[0]

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        if problems := problems_of(self):
            raise ValueError("\n".join(problems))
        return self


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        path = ".".join(map(str, item["loc"]))
        if item["type"] == "value_error" and not path:
            lines += str(item["ctx"]["error"]).split("\n")  # type: ignore[index]
        elif item["type"] == "extra_forbidden":
            lines.append(f"{path}: no such key")
        elif item["type"] == "missing":
            lines.append(f"{path}: missing")
        else:
            shown = item["input"] if not isinstance(item["input"], dict | list) else type(item["input"]).__name__
            lines.append(f"{path}: {item['msg'].removeprefix('Value error, ')} (got {shown!r})")
    return lines


def load_config(values: dict[str, Any]) -> Config:
    """Check a config as YAML gives it; SafetyDPOError names every bad key, one a line."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise SafetyDPOError("Config errors:\n  " + "\n  ".join(_lines(error))) from None


def read_config(path: Path) -> Config:
    """The resolved config that a run wrote."""
    import yaml

    return load_config(yaml.safe_load(Path(path).read_text()))
