"""The whole config of a run, and what follows from its parts together. YAML holds the values."""

import itertools
from typing import Annotated, Any

from pydantic import Field, model_validator

from safetydpo.attacks.registry import CONTROLS, attack_benchmark
from safetydpo.config.ablation import Study, Variant
from safetydpo.config.attacks import Attacks
from safetydpo.config.baselines import Baselines
from safetydpo.config.checks import problems_of
from safetydpo.config.evaluation import Benchmark, Cell, Evaluate, Tune
from safetydpo.config.judges import Judges
from safetydpo.config.merging import Merge
from safetydpo.config.model import Model
from safetydpo.config.prompts import Category, Prompts
from safetydpo.config.training import Train
from safetydpo.config.types import Count, Name, Section
from safetydpo.methods.registry import method_names


class Pairs(Section):
    """Rendering and encoding of pairs."""

    shards: Count = Field(1, description="Files per category, each a job of its own; at most the number of pairs")


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
        return method_names(
            {
                "category": self.category_names,
                "strategy": self.merge.strategies,
                "name": [external.name for external in self.baselines.externals],
                "variant": list(self.variants()),
            }
        )

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
