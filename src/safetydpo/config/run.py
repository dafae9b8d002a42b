"""The whole config of a run, and what follows from its parts together. YAML holds the values."""

import itertools
import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from safetydpo.attacks.registry import CONTROLS, attack_benchmark
from safetydpo.config.attacks import Attacks, Harden
from safetydpo.config.baselines import Baselines
from safetydpo.config.checks import problems_of
from safetydpo.config.evaluation import ALL, Benchmark, Cell, Evaluate, Tune
from safetydpo.config.judges import Judges
from safetydpo.config.merging import Merge
from safetydpo.config.model import Model
from safetydpo.config.prompts import Category, Prompts
from safetydpo.config.training import Train
from safetydpo.config.types import Count, Name, Section, Shards, UserPath
from safetydpo.methods.registry import method_names, method_of


def _folder(path: str) -> str:
    if "{" in path or "}" in path:
        raise ValueError("Snakemake reads { and } as a wildcard: call the folder otherwise")
    return os.path.normpath(path)


class Pairs(Section):
    """Rendering and encoding of pairs."""

    shards: Shards = Field(1, description="Files per category, each a job of its own; at most the number of pairs")


class Variant(Section):
    """Experts trained otherwise, then merged as the run's own: the method ablation-<study>-<variant>."""

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
    variants: list[Variant] = Field(min_length=1, description="What is compared with the run's own merge")


class Report(Section):
    """The report page."""

    blur: bool | None = Field(
        None, description="Blur flagged images; null: unless the demo judge is on the panel, whose marks are harmless"
    )
    scenes: Annotated[int, Field(ge=1, le=100)] = Field(7, description="Prompts per image grid")


class Export(Section):
    """Rule `export`, which has no flags as the command has; each target is results/<run>/export/<method>/<format>."""

    rank: Annotated[int, Field(ge=1, le=10**4)] | None = Field(
        None, description="Rank at which LoRAs are cut off; of methods that are no LoRA of the run it is needed"
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="Precision of the weights; null: model.dtype, of LoRAs float32"
    )


class Resources(Section):
    """What jobs ask of a cluster; memory grows with each retry."""

    threads: Count = Field(1, description="Threads of a render, train or score job")
    mem_mb: Annotated[int, Field(ge=500, le=10**8)] = Field(3000, description="Memory of a job at its first try, MB")
    runtime: Count = Field(30, description="Minutes")
    gpu: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="GPUs of a job that renders or encodes; not 0: a training gets train.gpus"
    )


class Config(Section):
    """The whole config."""

    run: Name = Field(description="Name of the run: results/<run>/")
    results: Annotated[UserPath, AfterValidator(_folder)] = Field("results", description="Folder of all runs")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        0, description="Every random draw of the run derives from it and from the name of what is drawn"
    )
    model: Model
    categories: list[Category] = Field(description="Each gets an expert; none: nothing is trained")
    prompts: Prompts
    pairs: Pairs = Field(default_factory=Pairs)  # type: ignore[arg-type]
    train: Train
    harden: Harden = Field(default_factory=Harden)  # type: ignore[arg-type]
    merge: Merge = Field(default_factory=Merge)  # type: ignore[arg-type]
    tune: Tune = Field(default_factory=Tune)  # type: ignore[arg-type]
    baselines: Baselines = Field(default_factory=Baselines)  # type: ignore[arg-type]
    benchmarks: list[Benchmark] = Field(min_length=1)
    judges: Judges
    evaluate: Evaluate
    attacks: Attacks = Field(default_factory=Attacks)  # type: ignore[arg-type]
    ablation: list[Study] = Field(default_factory=list, description="Studies, each a target of its own")
    report: Report = Field(default_factory=Report)  # type: ignore[arg-type]
    export: Export = Field(default_factory=Export)  # type: ignore[arg-type]
    resources: Resources = Field(default_factory=Resources)  # type: ignore[arg-type]

    @property
    def folder(self) -> str:
        """The folder of the run."""
        return os.path.normpath(f"{self.results}/{self.run}")

    @property
    def blurs(self) -> bool:
        """Whether the report blurs flagged images: those of a real model unless it is told not to."""
        return not self.judges.sees_categories if self.report.blur is None else self.report.blur

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
        own = self.train.model_dump(exclude={"all_single"})
        if isinstance(preserve := differs.get("preserve"), dict):
            differs = differs | {"preserve": own["preserve"] | preserve}
        return Train.model_validate(own | differs)

    @property
    def all_single(self) -> dict[str, Any]:
        """The keys of `train` that differ for All-single: as many steps as all experts together, if it is not told."""
        return {"steps": self.train.steps * max(len(self.categories), 1)} | (self.train.all_single or {})

    def train_of_all_single(self) -> Train:
        """The train section of All-single."""
        return self.train_of(self.all_single)

    def other_trainings(self) -> dict[str, dict[str, Any]]:
        """The keys of `train` that differ in trainings beside the experts', by where the config has them."""
        variants = {f"ablation {name}: train": variant.train for name, variant in self.variants().items()}
        return {"train.all_single": self.all_single, **variants}

    def targets(self) -> set[str]:
        """Modules that any training of the run names to get a LoRA."""
        differs = [{}, *self.other_trainings().values()]
        return {target for keys in differs for target in self.train_of(keys).target_modules or ()}

    def asked(self) -> dict[str, str]:
        """What a model's family may not do: `key: name` of each method and attack -> its name in its registry."""
        attacks, matrix = self.attacks, [method for method, _ in self.cells()]
        methods = {"evaluate.matrix": matrix, "attacks.methods": attacks.methods if attacks.run else []}
        found = {f"{key}: `{name}`": method_of(name).kind.name for key, names in methods.items() for name in names}
        return found | {f"attacks.run: `{name}`": name for name in attacks.run}

    @property
    def trains(self) -> bool:
        """Whether a method that is rendered is trained on prompt pairs; a run without one is an audit."""
        attacked = self.attacks.methods if self.attacks.run else []
        return any(method_of(name).kind.trained for name in [*(method for method, _ in self.cells()), *attacked])

    @property
    def hardens(self) -> bool:
        """Whether there are adversarial rounds."""
        return bool(self.harden.rounds and self.categories)

    @property
    def hardens_by(self) -> str:
        """The merge of a round's experts that the next round attacks."""
        return self.harden.strategy or self.merge.own

    def hardening_attack(self, attack: str) -> dict[str, Any]:
        """The attacks section of a round: its own numbers of prompts and images."""
        own = {"prompts": 10**6, "rounds": self.harden.tries, "success": "flagged"}
        return self.attacks.asked(attack) | own

    def cell(self, method: str, benchmark: str) -> Cell:
        """The cell of the matrix; where it has none (ablations), one on as many prompts as base has there."""
        cells = self.cells()
        base = cells.get(("base", benchmark))
        return cells.get((method, benchmark)) or Cell(method, benchmark, base and base.n, None)

    def cells(self) -> dict[tuple[str, str], Cell]:
        """Every cell of the matrix by (method, benchmark)."""
        return {(cell.method, cell.benchmark): cell for cell in self.mentioned_cells()}

    def mentioned_cells(self) -> Iterator[Cell]:
        """The cells as the matrix mentions them."""
        for cells in self.evaluate.matrix:
            for method in cells.methods:
                names = [f"expert-{c}" for c in self.category_names] if method == "experts" else [method]
                benchmarks = [b.name for b in self.benchmarks] if cells.benchmarks == [ALL] else cells.benchmarks
                for name, benchmark in itertools.product(names, benchmarks):
                    category = name.removeprefix("expert-") if cells.own_category and name != method else None
                    yield Cell(name, benchmark, cells.n, category)

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
        """Whether a cell is compared with base's scores of the same prompts."""
        return method != "base" and self.attack_of(benchmark) is None

    def shows_layout(self, method: str, benchmark: str) -> bool:
        """Whether a cell's images are compared with base's: on the first unsafe benchmark, where a table shows it."""
        return self.beside_base(method, benchmark) and benchmark == self.first_benchmark("unsafe")

    @property
    def fid_reference_path(self) -> str | None:
        """Real images that FID and KID are measured to, a folder or .npz; None where a method's are, or none."""
        reference = self.evaluate.fid_reference
        return None if reference in self.methods() else reference

    def first_benchmark(self, kind: str) -> str | None:
        """Name of the first benchmark of a kind."""
        return next((b.name for b in self.benchmarks if b.kind == kind), None)

    def kinds(self) -> dict[str, str]:
        """Benchmark, those of attacks too -> its kind."""
        return {b.name: b.kind for b in self.benchmarks} | {b: "unsafe" for _, b in self.attack_cells()}

    @property
    def attacked_benchmark(self) -> str | None:
        """The unsafe benchmark whose prompts are attacked; None where there is none, and so no attack."""
        return self.attacks.benchmark or self.first_benchmark("unsafe")

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        if problems := problems_of(self):
            raise ValueError("\n".join(problems))
        return self
