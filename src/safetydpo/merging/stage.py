"""Stage 5: join the experts into one LoRA."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from safetydpo.config.merging import Merge
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import read_features
from safetydpo.merging.coactivation import Wins, counting
from safetydpo.merging.strategies import merge, update_of
from safetydpo.models.cards import Aligned, merged_card
from safetydpo.models.index import Index
from safetydpo.models.lora import Factors, load_factors, same_modules, save_factors
from safetydpo.running.progress import progress
from safetydpo.storage.files import made_by, read_parquet, write_parquet, write_text
from safetydpo.storage.finite import finite
from safetydpo.storage.records import seed_of
from safetydpo.training.denoiser import Denoiser, Noised


def calibration_inputs(
    denoiser: Denoiser, features: dict[str, list[str]], model: Model, config: Merge, seed: int, role: str = "unsafe"
) -> Iterator[Noised]:
    """Batches of calibration prompts of every category at each timestep, with the image of `role` noised."""
    for category, paths in features.items():
        data = read_features(paths, model.id)
        chosen = np.random.default_rng(seed_of(seed, category)).permutation(len(data))[: config.calibration_prompts]
        for timestep in config.calibration_timesteps:
            for start in range(0, len(chosen), model.batch_size):
                index = [int(i) for i in chosen[start : start + model.batch_size]]
                keys = [seed_of(seed, f"{data.ids[i]}/{timestep}") for i in index]
                yield denoiser.noised(data, (role,), index, keys, timestep=timestep)


def calibrate(
    experts: dict[str, Factors], features: dict[str, list[str]], model: Model, config: Merge, seed: int
) -> Wins:
    """Wins per layer over the calibration inputs."""
    denoiser = Denoiser(model)
    with counting(denoiser.network, list(experts.values()), same_modules(experts)) as wins:
        for batch in progress(calibration_inputs(denoiser, features, model, config, seed), "calibrate"):
            denoiser.predict(batch)
    return wins


def write_coactivation(
    folders: dict[str, str], features: dict[str, list[str]], model: Model, config: Merge, seed: int, out: Path | str
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


def merge_experts(
    strategy: str,
    folders: dict[str, str],
    coactivation: str | None,
    model: Model,
    config: Merge,
    seed: int,
    out: Path | str,
) -> None:
    """Merge the experts in `folders` (category -> folder) by a strategy; write LoRA and card into the folder `out`."""
    out, names, component = Path(out), list(folders), Index(model).family.kind.component
    experts = {name: load_factors(folder, component) for name, folder in folders.items()}
    wins = read_coactivation(coactivation, names) if coactivation else None
    if wins is not None and (missing := set(same_modules(experts)) - set(wins)):
        raise SafetyDPOError(f"{coactivation} has no statistics of {min(missing)}: delete it and rerun snakemake.")
    merged = merge(strategy, experts, wins, config.rank, config.density, seed)
    rank = next(iter(merged.values()))[0].shape[0]
    norm = torch.stack([update_of(pair).norm() for pair in merged.values()]).norm()
    finite(norm, f"The norm of what {strategy} makes of {', '.join(names)}", "lower train.learning_rate")
    print(f"{strategy}: {len(merged)} layers, rank {rank}, norm of the update {norm:.2f}")
    header = made_by("merge", strategy=strategy, experts=names, config=config.model_dump(), model=model.id, seed=seed)
    write_text(merged_card(strategy, Aligned.of(model), names, rank), out / "README.md")
    save_factors(merged, out, component, header)
