"""What every workflow script does around its one library call: a log file, and errors as one sentence."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetydpo.config import Model
from safetydpo.errors import SafetyDPOError


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Send what the block prints to the rule's log; a SafetyDPOError ends the job with its sentence alone."""
    path = Path(snakemake.log[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    terminal = sys.stderr
    with path.open("w", buffering=1) as log:
        sys.stderr = sys.stdout = log
        logging.basicConfig(stream=log, level=logging.INFO, format="%(asctime)s %(message)s", force=True)
        try:
            _limit_threads(snakemake.threads)
            yield
        except SafetyDPOError as error:
            print(error, file=log)
            print(f"\n{snakemake.rule}: {error}\n", file=terminal, flush=True)
            sys.exit(1)
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, terminal


def model_of(snakemake: Any) -> Model:
    """The model section: what changes images from the rule's params, batch size and device from the config."""
    machine = {
        key: snakemake.config["model"][key] for key in ("batch_size", "device") if key in snakemake.config["model"]
    }
    return Model(**snakemake.params.model, **machine)


def _limit_threads(threads: int) -> None:
    """Keep torch to the threads the rule asked for; nothing is imported for jobs that do without torch."""
    import os

    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
