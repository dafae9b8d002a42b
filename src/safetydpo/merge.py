"""Stage 5: join the experts into one LoRA."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from safetydpo.cards import merged_card
from safetydpo.coactivation import Wins, counting
from safetydpo.config import Merge, Model
from safetydpo.denoiser import Denoiser
from safetydpo.feature_sets import read_features
from safetydpo.files import made_by, write_parquet, write_text
from safetydpo.lora import Factors, load_factors, same_modules, save_factors
from safetydpo.merging import merge
from safetydpo.models import load_pipeline
from safetydpo.records import seed_of


def calibrate(
    experts: dict[str, Factors], features: dict[str, list[str]], model: Model, config: Merge, seed: int
) -> Wins:
    """Wins per layer over the calibration inputs: some prompts of every category at some timesteps, unsafe image noised."""
    denoiser = Denoiser(load_pipeline(model), model)
    with counting(denoiser.unet, list(experts.values()), same_modules(experts)) as wins:
        for category, paths in tqdm(features.items(), "calibrate"):
            data = read_features(paths, model.id)
            chosen = np.random.default_rng(seed_of(seed, category)).permutation(len(data))[: config.calibration_prompts]
            for timestep in config.calibration_timesteps:
                keys = [seed_of(seed, f"{data.ids[i]}/{timestep}") for i in chosen]
                batch = denoiser.noised(data, ("unsafe",), list(map(int, chosen)), keys, timestep=timestep)
                denoiser.predict(batch)
    return wins


def coactivation_table(wins: Wins, names: list[str]) -> pd.DataFrame:
    """One row a layer and expert: module, expert, units (in the layer), units_won, share_of_inputs (of its won units)."""
    rows = []
    for module, counts in wins.items():
        winner, total = counts.argmax(0), counts.sum(0)
        for i, name in enumerate(names):
            won = winner == i
            share = float((counts[i][won] / total[won]).mean()) if won.any() else float("nan")
            row = {"module": module, "expert": name, "units": counts.shape[1], "units_won": int(won.sum())}
            rows.append({**row, "share_of_inputs": share})
    return pd.DataFrame(rows)


def merge_experts(
    strategy: str,
    folders: dict[str, str],
    features: dict[str, list[str]],
    model: Model,
    config: Merge,
    seed: int,
    out: Path | str,
) -> None:
    """Merge the experts in `folders` (category -> folder) and write LoRA, card and, for co-merge, coactivation.parquet."""
    out, names = Path(out), list(folders)
    experts = {name: load_factors(folder) for name, folder in folders.items()}
    header = made_by("merge", strategy=strategy, experts=names, config=config.model_dump(), model=model.id, seed=seed)
    wins = None
    if strategy == "co-merge":
        wins = calibrate(experts, features, model, config, seed)
        write_parquet(coactivation_table(wins, names), out / "coactivation.parquet", header)
    merged = merge(strategy, experts, wins, config.rank, config.density, seed)
    rank = next(iter(merged.values()))[0].shape[0]
    norm = torch.stack([(b @ a).norm() for a, b in merged.values()]).norm()
    print(f"{strategy}: {len(merged)} layers, rank {rank}, norm of the update {norm:.2f}")
    write_text(merged_card(strategy, model.id, names, rank), out / "README.md")
    save_factors(merged, out, header)
