"""Stage 5: join the experts into one LoRA."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from safetydpo.config.merging import Merge
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import read_features
from safetydpo.merging.coactivation import Wins, counting
from safetydpo.merging.fusion import RETAIN, Gathering, read_covariances, save_covariances
from safetydpo.merging.registry import COACTIVATION, STRATEGIES
from safetydpo.merging.strategies import merge
from safetydpo.models.cards import Aligned, merged_card
from safetydpo.models.index import Index
from safetydpo.models.lora import Factors, load_factors, same_modules, save_factors, update_of
from safetydpo.running.progress import progress
from safetydpo.storage.files import made_by, read_parquet, write_parquet, write_text
from safetydpo.storage.finite import finite
from safetydpo.storage.records import seed_of
from safetydpo.training.denoiser import Denoiser, Noised


def calibration_inputs(
    denoiser: Denoiser, features: dict[str, list[str]], config: Merge, seed: int, role: str = "unsafe"
) -> Iterator[Noised]:
    """Batches of calibration prompts of every category at each timestep, with the image of `role` noised."""
    for category, paths in features.items():
        yield from _inputs_of(denoiser, category, paths, config.calibration_prompts, config, seed, role)


def _inputs_of(
    denoiser: Denoiser, name: str, paths: Sequence[str], prompts: int, config: Merge, seed: int, role: str
) -> Iterator[Noised]:
    data, size = read_features(paths, denoiser.model.id), denoiser.model.batch_size
    chosen = np.random.default_rng(seed_of(seed, name)).permutation(len(data))[:prompts]
    for timestep in config.calibration_timesteps:
        for start in range(0, len(chosen), size):
            index = [int(i) for i in chosen[start : start + size]]
            keys = [seed_of(seed, f"{data.ids[i]}/{timestep}") for i in index]
            yield denoiser.noised(data, (role,), index, keys, timestep=timestep)


def calibrate(
    experts: dict[str, Factors], features: dict[str, list[str]], model: Model, config: Merge, seed: int
) -> Wins:
    """Wins per layer over the calibration inputs."""
    denoiser = Denoiser(model)
    with counting(denoiser.network, list(experts.values()), same_modules(experts)) as wins:
        for batch in progress(calibration_inputs(denoiser, features, config, seed), "calibrate"):
            denoiser.predict(batch)
    return wins


def write_coactivation(
    folders: Mapping[str, Path | str],
    features: dict[str, list[str]],
    model: Model,
    config: Merge,
    seed: int,
    out: Path | str,
) -> None:
    """Write the statistics of the experts in `folders` (category -> folder): module, unit, expert, wins, inputs."""
    component = Index(model).family.kind.component
    experts = {name: load_factors(folder, component) for name, folder in folders.items()}
    parts = []
    for module, counts in calibrate(experts, features, model, config, seed).items():
        count, units = counts.shape
        part = {"module": module, "unit": np.tile(np.arange(units), count), "expert": np.repeat(list(experts), units)}
        parts.append(
            pd.DataFrame({**part, "wins": counts.numpy().ravel(), "inputs": np.tile(counts.sum(0).numpy(), count)})
        )
    header = made_by("merge", experts=list(experts), config=config.model_dump(), model=model.id, seed=seed)
    write_parquet(pd.concat(parts, ignore_index=True), out, header)


def write_covariances(
    folders: Mapping[str, Path | str],
    features: dict[str, list[str]],
    retain: str | None,
    model: Model,
    config: Merge,
    seed: int,
    out: Path | str,
) -> None:
    """Write what fusion needs of the experts in `folders` (category -> folder), on their categories' calibration inputs
    and on those of the retain set, the features file `retain`, if it is to count.
    """
    denoiser = Denoiser(model)
    experts = {name: load_factors(folder, denoiser.family.kind.component) for name, folder in folders.items()}
    gathering = Gathering(denoiser.network, experts, same_modules(experts))
    sets = [(name, features[name], config.calibration_prompts, "unsafe") for name in experts]
    sets += [(RETAIN, [retain], config.fusion.retain_prompts, "image")] if retain else []
    for name, paths, prompts, role in progress(sets, "covariances"):
        inputs = _inputs_of(denoiser, name, paths, prompts, config, seed, role)
        gathering.gather(name, (denoiser.predict(batch) for batch in inputs))
    header = made_by("merge", experts=list(experts), config=config.model_dump(), model=model.id, seed=seed)
    save_covariances(gathering.found, out, header)


def read_coactivation(path: Path | str, names: list[str]) -> Wins:
    """Wins per module, (experts, units) in the order of `names`."""
    table = read_parquet(path)
    missing = set(names) - set(table.expert)
    if missing:
        raise SafetyDPOError(f"{path} has no statistics of expert {min(missing)}: delete it and rerun.")
    wins = {}
    for module, part in table.groupby("module", sort=False):
        counts = part.pivot_table(index="expert", columns="unit", values="wins", sort=True).loc[names]
        found = finite(counts.to_numpy(copy=True), f"{path}, counts of {module}", "delete it and rerun snakemake")
        wins[str(module)] = torch.from_numpy(found)
    return wins


def _read(kind: str, path: str, names: list[str]) -> dict[str, Any]:
    """Statistics by layer."""
    return read_coactivation(path, names) if kind == COACTIVATION else read_covariances(path, names)


def merge_experts(
    strategy: str,
    folders: Mapping[str, Path | str],
    statistics: str | None,
    model: Model,
    config: Merge,
    seed: int,
    out: Path | str,
) -> None:
    """Merge the experts in `folders` (category -> folder) by a strategy; write LoRA and card into the folder `out`."""
    out, names, component = Path(out), list(folders), Index(model).family.kind.component
    experts = {name: load_factors(folder, component) for name, folder in folders.items()}
    kind = STRATEGIES[strategy].statistics
    found = _read(kind, str(statistics), names) if kind else None
    if found is not None and (missing := set(same_modules(experts)) - set(found)):
        raise SafetyDPOError(f"{statistics} has no statistics of {min(missing)}: delete it and rerun snakemake.")
    merged = merge(strategy, experts, found, config, seed)
    rank = next(iter(merged.values()))[0].shape[0]
    norm = torch.stack([update_of(pair).norm() for pair in merged.values()]).norm()
    finite(norm, f"The norm of what {strategy} makes of {', '.join(names)}", "lower train.learning_rate")
    print(f"{strategy}: {len(merged)} layers, rank {rank}, norm of the update {norm:.2f}")
    header = made_by("merge", strategy=strategy, experts=names, config=config.model_dump(), model=model.id, seed=seed)
    write_text(merged_card(strategy, Aligned.of(model), names, rank), out / "README.md")
    save_factors(merged, out, component, header)
