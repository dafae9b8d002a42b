"""What is exported, and what a format makes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safetydpo.config.model import Model
from safetydpo.config.run import Config
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import open_method
from safetydpo.methods.registry import Method
from safetydpo.models.pipeline import bad_weight, not_finite, unwrapped
from safetydpo.running.jobs import scale_in
from safetydpo.storage.files import made_by


class Asked(NamedTuple):
    """One export. dtype: the precision that was asked for, None for the one that there is."""

    config: Config
    run: Path
    method: Method
    weights: Path | None  # the file of the run that the method renders with
    scale: float  # of its LoRA
    rank: int | None
    dtype: str | None

    def model(self, dtype: str) -> Model:
        """The model section, on the CPU, in a precision."""
        return self.config.model.model_copy(update={"device": "cpu", "dtype": dtype})

    def open(self, dtype: str) -> Any:
        """The method's pipeline, all of it in its weights; SafetyDPOError where one of them is not finite."""
        opened = open_method(self.method.name, self.model(dtype), self.config.baselines, self.weights, self.scale)
        pipeline = unwrapped(opened)
        if bad_weight(pipeline):
            raise not_finite(pipeline, f"{self.method.name} in {dtype} has weights that are not finite")
        return pipeline

    @property
    def model_name(self) -> str:
        """The model as files say it that leave this machine: of a path that is its own, the last part."""
        name = self.config.model.id
        return Path(name).name if Path(name).is_absolute() else name

    @property
    def header(self) -> dict[str, str]:
        """What made a file."""
        facts = {"run": self.config.run, "method": self.method.name, "scale": self.scale, "rank": self.rank}
        return made_by("export", **facts, model=self.model_name, seed=self.config.seed)


class Made(NamedTuple):
    """An export that only needs to be written. save: writes it into an empty folder, and does nothing that may fail
    otherwise; load: how it is loaded, Markdown; notes: what its reader must know.
    """

    save: Callable[[Path], None]
    load: str
    notes: list[str]


def parts_of(config: Config, run: Path, method: Method) -> tuple[Path | None, float]:
    """The file of a run that a method renders with, None where it needs none, and the scale of its LoRA.

    Raises SafetyDPOError where the run has no such method, or a file of it is not made yet.
    """
    if method.name not in config.methods():
        raise SafetyDPOError(f"{run} has no method {method.name}: there are {', '.join(config.methods())}.")
    weights = run / method.weights if method.weights else None
    tuning = run / f"tuning/{method.name}.json" if method.kind.tuned else None
    for path in (weights, tuning):
        if path and not path.is_file():
            raise SafetyDPOError(
                f"{run} is not finished, {path} is missing: `snakemake --cores all {path}` makes it, with the run's "
                "--configfile where it has one."
            )
    return weights, scale_in(tuning) if tuning else 1.0
