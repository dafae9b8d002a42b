"""What every workflow script does around its one library call: a log file, and errors as one sentence."""

import gc
import json
import logging
import math
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetydpo.config.attacks import Attacks
from safetydpo.config.judges import Judges, Looks
from safetydpo.config.model import Model
from safetydpo.config.training import Train
from safetydpo.config.versions import MACHINE_KEYS
from safetydpo.errors import SafetyDPOError


@contextmanager
def job(snakemake: Any) -> Iterator[Callable[[str], None]]:
    """Send what the block prints to the rule's log; a SafetyDPOError ends the job with its sentence alone, on
    the terminal too; of another error the log gets the traceback, which Snakemake tells the terminal.

    Yields a function for the line that belongs on the terminal.
    """
    path = Path(snakemake.log[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    terminal = sys.stderr
    with path.open("w", buffering=1) as log:
        sys.stderr = sys.stdout = log
        logging.basicConfig(stream=log, level=logging.INFO, format="%(asctime)s %(message)s", force=True)
        for name in ("httpx2", "openai"):
            logging.getLogger(name).setLevel(logging.WARNING)  # a line for every request
        try:
            _limit_threads(snakemake.threads)
            print(f"{snakemake.rule} on {platform.node()}, {snakemake.threads} threads{_gpus()}")
            if lacks := snakemake.params.get("lacks"):  # what the config does not say and the rule must know
                raise SafetyDPOError(lacks)
            yield lambda text: print(f"{snakemake.rule}: {text}", file=terminal, flush=True)
        except SafetyDPOError as error:
            print(error, file=log)
            print(f"\n{snakemake.rule}: {error}\n", file=terminal, flush=True)
            sys.exit(1)
        except Exception:
            traceback.print_exc(file=log)
            raise
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, terminal


@contextmanager
def importing() -> Iterator[None]:
    """Import in the block while Python's collector of cycles rests, which would go through all that is there again and
    again and find nothing. What is there when the block ends stays as long as the process, and is never gone through
    again: so nothing but imports belongs in the block.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _gpus() -> str:
    """The GPUs that a cluster gave to the job."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f", CUDA_VISIBLE_DEVICES {given}" if given else ""


def model_of(snakemake: Any) -> Model:
    """The model section: what changes images from the rule's params, the rest from the config."""
    return Model(**snakemake.params.model, **_machine(snakemake, "model"))


def train_of(snakemake: Any) -> Train:
    """The train section, in the same way."""
    return Train(**snakemake.params.train, **_machine(snakemake, "train"))


def attacks_of(snakemake: Any) -> Attacks:
    """The attacks section: what an attack depends on from the rule's params, the rest from the config."""
    return Attacks(**snakemake.params.attacks, **_machine(snakemake, "attacks"))


def looks_of(snakemake: Any) -> Looks:
    """Who looks at images: pickles as the run keeps them, a server's key, rates and retries from the config."""
    return Looks(**_judges(snakemake))


def judges_of(snakemake: Any) -> Judges:
    """The judges section with its verdicts, in the same way."""
    return Judges(**_judges(snakemake))


def _judges(snakemake: Any) -> dict[str, Any]:
    values = snakemake.params.judges
    copies = {Path(path).stem: path for path in snakemake.input.get("copies", [])}
    given = {entry.get("name") or entry["judge"]: entry for entry in snakemake.config["judges"]["panel"]}
    panel = []
    for entry in values["panel"]:
        entry = entry | {"path": copies.get(entry["name"], entry["path"])}
        if entry["server"]:
            keys = MACHINE_KEYS["judges"]["panel"]["__all__"]["server"]
            machine = {key: value for key, value in given[entry["name"]]["server"].items() if key in keys}
            entry["server"] = entry["server"] | machine
        panel.append(entry)
    return values | {"panel": panel}


def experts_of(snakemake: Any) -> dict[str, Path]:
    """Category -> the folder of its expert, of a rule whose input `experts` is in the order of its categories."""
    return dict(zip(snakemake.params.categories, (Path(lora).parent for lora in snakemake.input.experts), strict=True))


def features_of(snakemake: Any) -> dict[str, list[str]]:
    """Category -> its features files, of a rule whose input `features` has as many of each, in the same order."""
    files, names = list(snakemake.input.features), snakemake.params.categories
    shards = len(files) // len(names)
    return {name: files[i * shards : (i + 1) * shards] for i, name in enumerate(names)}


def scale_of(snakemake: Any) -> float:
    """The LoRA scale that tuning chose; 1 for methods that are not tuned. SafetyDPOError if its file is not whole."""
    path = snakemake.input.get("scale")
    return scale_in(path) if path else 1.0


def scale_in(path: Path | str) -> float:
    """The LoRA scale in the file that tuning wrote; SafetyDPOError if that is not whole."""
    try:
        scale = float(json.loads(Path(path).read_text(encoding="utf-8"))["scale"])
    except (ValueError, KeyError, TypeError):
        scale = math.nan
    if not math.isfinite(scale):  # JSON's NaN too
        raise SafetyDPOError(f"{path} holds no LoRA scale: delete it and rerun snakemake.")
    return scale


def _machine(snakemake: Any, section: str) -> dict[str, Any]:
    values = snakemake.config.get(section, {})
    return {key: values[key] for key in MACHINE_KEYS[section] if key in values}


def _limit_threads(threads: int) -> None:
    """Keep torch to the threads the rule asked for; nothing is imported for jobs that do without torch."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
