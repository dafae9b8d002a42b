"""Stage 4: a LoRA expert trained with Diffusion-DPO on cached features; neither VAE nor text encoder is in memory.

`train_expert` runs here, or as `train.gpus` processes that accelerate launches on this module.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch

from safetydpo.config.model import Model
from safetydpo.config.training import Train
from safetydpo.config.versions import MACHINE_KEYS, STAGE_VERSION
from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import Features, read_features
from safetydpo.models.cards import Aligned, expert_card
from safetydpo.models.compiling import prepare_compiler
from safetydpo.models.lora import save_factors
from safetydpo.running.devices import device_of
from safetydpo.running.launch import launch, read_job, report_error
from safetydpo.storage.checkpoints import Checkpoints
from safetydpo.storage.files import made_by, write_parquet, write_text
from safetydpo.storage.locks import alone
from safetydpo.storage.records import seed_of
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.samples import PAIR_ROLES, RETAIN_ROLES, Samples, Share
from safetydpo.training.trainer import Objective, Trainer, make_accelerator


def train_expert(
    features: list[str],
    retain: str | None,
    model: Model,
    config: Train,
    *,
    steps: int,
    seed: int,
    name: str,
    out: Path | str,
    checkpoints: Path | str,
    pairs: int | None = None,
) -> None:
    """Train the expert `name`; write its LoRA, training.parquet and model card into the folder `out`.

    pairs: train on the first ones alone.
    Checkpoints lie in a folder of their own until then; a job that is killed and run again goes on from the newest.
    """
    paths = {"features": list(features), "retain": retain, "out": str(out), "checkpoints": str(checkpoints)}
    settings = {"steps": steps, "seed": seed, "name": name, "pairs": pairs}
    sections = {"model": model.model_dump(), "train": config.model_dump()}
    if device_of(model.device).type == "cuda" and config.gpus > torch.cuda.device_count():
        raise SafetyDPOError(
            f"train.gpus is {config.gpus}, but {torch.cuda.device_count()} GPUs are visible: ask for more, or lower it."
        )
    with alone(checkpoints) as lock:
        if config.gpus == 1:
            _train(**paths, **settings, model=model, config=config)
        else:
            launch("safetydpo.training.stage", paths | settings | sections, config.gpus, lock)


def _samples(
    paths: list[str],
    roles: tuple[str, ...],
    model: Model,
    config: Train,
    seed: int,
    share: Share,
    count: int | None = None,
) -> Samples:
    features: Features = read_features(paths, model.id, check=share.rank == 0).first(count)
    if config.flip and not features.flips:
        raise SafetyDPOError(f"{paths[0]} has no mirrored images, train.flip wants them: delete it and rerun.")
    if config.noise == "rendered" and features.seeds is None:
        raise SafetyDPOError(
            f"{paths[0]} is of images that were not rendered here, so their noise is not known: set train.noise to "
            "fresh."
        )
    size = config.batch_size if roles == PAIR_ROLES else config.preserve.batch_size
    return Samples(features, roles, size, config, seed, share)


def _train(
    *,
    features: list[str],
    retain: str | None,
    model: Model,
    config: Train,
    steps: int,
    seed: int,
    name: str,
    out: str,
    checkpoints: str,
    pairs: int | None = None,
) -> None:
    """One process's part of a training; the main one writes."""
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise SafetyDPOError(
            "train.tensorboard needs the package tensorboard: install the extra `tensorboard`, or set it false."
        )
    board = Path(out).parent.parent / "tensorboard"
    options = {"log_with": "tensorboard", "project_dir": str(board)} if config.tensorboard else {}
    accelerator = make_accelerator(config, device_of(model.device), **options)
    if config.compile:
        prepare_compiler(model, accelerator.device, "train.compile")
    key = seed_of(seed, f"train/{name}")
    share = Share(accelerator.process_index, accelerator.num_processes)
    samples = _samples(features, PAIR_ROLES, model, config, key, share, pairs)
    kept = _samples([retain], RETAIN_ROLES, model, config, seed_of(key, "retain"), share) if retain else None
    denoiser = Denoiser(model, config.mixed_precision, accelerator.device, config.timestep_sampling)
    for part in [s for s in (samples, kept) if s]:
        denoiser.check(part.features)
    denoiser.add_adapter(config, key)
    facts = {"model": model.id, "train": config.model_dump(exclude=MACHINE_KEYS["train"]), "steps": steps, "seed": seed}
    data = {"features": samples.features.fingerprint, "retain": kept.features.fingerprint if kept else ""}
    states = Checkpoints(checkpoints, {**facts, **data, "version": STAGE_VERSION["train"]})
    print(f"{name}: {steps} steps, {len(samples.features)} pairs, {share.processes} processes on {accelerator.device}")
    if config.tensorboard:
        accelerator.init_trackers(name)
    log = Trainer(Objective(denoiser, samples, kept, config), steps, name, accelerator, states).fit()
    accelerator.end_training()
    if accelerator.is_main_process:
        header = made_by("train", expert=name, **facts)
        write_parquet(log, Path(out) / "training.parquet", header)
        card = Aligned.of(model), config, denoiser.prediction.sampling, steps, len(samples.features), log
        write_text(expert_card(name, *card), Path(out) / "README.md")
        save_factors(denoiser.factors(), out, denoiser.family.kind.component, header)
        states.clear()


def main(folder: str) -> None:
    """A process of `launch`."""
    job: dict[str, Any] = read_job(folder)
    if int(os.environ.get("RANK", 0)):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  one process tells what all do
    job |= {"model": Model(**job["model"]), "config": Train(**job.pop("train"))}
    try:
        _train(**job)
    except SafetyDPOError as error:
        report_error(folder, error)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
