"""Stage 4: a LoRA expert trained with Diffusion-DPO on cached features; neither VAE nor text encoder is in memory.

Every random draw has a key (step and slot, or sample and draw number), so a run is reproducible and independent of
what was drawn before. The reference model is the same UNet with its adapters switched off.
"""

import math
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers.optimization import get_scheduler
from tqdm import tqdm

from safetydpo.cards import expert_card
from safetydpo.config import Model, Train
from safetydpo.denoiser import Denoiser, Noised
from safetydpo.errors import SafetyDPOError
from safetydpo.feature_sets import Features, read_features
from safetydpo.files import made_by, write_parquet, write_text
from safetydpo.lora import save_factors
from safetydpo.losses import dpo_loss, squared_error
from safetydpo.models import load_pipeline
from safetydpo.records import seed_of

PAIR_ROLES, RETAIN_ROLES = ("safe", "unsafe"), ("image",)


class Samples:
    """A feature set with a seeded endless order, and, for cached references, their outputs on fixed draws."""

    def __init__(self, features: Features, roles: tuple[str, ...], batch_size: int, config: Train, seed: int) -> None:
        self.features, self.roles, self.batch_size, self.seed = features, roles, batch_size, seed
        self.draws = config.draws if config.reference == "cached" else 0
        self.dropout = config.caption_dropout if roles == PAIR_ROLES else 0.0
        self.known: torch.Tensor | None = None

    def pick(self, turn: int) -> tuple[list[int], list[int], list[int]]:
        """Sample numbers, draw numbers and keys of the `turn`-th batch; epochs are reshuffled."""
        n, first = len(self.features), turn * self.batch_size
        index = [self._epoch(p // n)[p % n] for p in range(first, first + self.batch_size)]
        if not self.draws:
            return index, [0] * len(index), [seed_of(self.seed, f"fresh/{turn}/{slot}") for slot in range(len(index))]
        rng = torch.Generator().manual_seed(seed_of(self.seed, f"draw/{turn}"))
        numbers = torch.randint(self.draws, (len(index),), generator=rng).tolist()
        return index, numbers, [self._key(i, k) for i, k in zip(index, numbers, strict=True)]

    def _epoch(self, epoch: int) -> list[int]:
        rng = torch.Generator().manual_seed(seed_of(self.seed, f"epoch/{epoch}"))
        return torch.randperm(len(self.features), generator=rng).tolist()

    def _key(self, sample: int, draw: int) -> int:
        return seed_of(self.seed, f"{self.features.ids[sample]}/{draw}")

    def noised(self, denoiser: Denoiser, index: list[int], keys: list[int]) -> Noised:
        """The batch, captions dropped by their keys."""
        dropped = torch.tensor([key % 10_000 < 10_000 * self.dropout for key in keys]) if self.dropout else None
        return denoiser.noised(self.features, self.roles, index, keys, dropped)

    def remember(self, denoiser: Denoiser, keep_prediction: bool) -> None:
        """Run the reference over every (sample, draw): errors (n, draws, roles), or whole predictions."""
        jobs = [(i, k) for i in range(len(self.features)) for k in range(self.draws)]
        outputs = []
        for start in tqdm(range(0, len(jobs), 64), "reference", mininterval=2):
            part = jobs[start : start + 64]
            batch = self.noised(denoiser, [i for i, _ in part], [self._key(i, k) for i, k in part])
            prediction = denoiser.reference(batch)
            if keep_prediction:
                outputs.append(prediction.cpu())
            else:
                outputs.append(squared_error(prediction, batch.target).view(len(self.roles), -1).T.cpu())
        self.known = torch.cat(outputs).unflatten(0, (len(self.features), self.draws))

    def recall(self, index: list[int], numbers: list[int], device: torch.device) -> torch.Tensor | None:
        """What `remember` kept for these draws, or None."""
        return None if self.known is None else self.known[index, numbers].to(device)


def train_step(denoiser: Denoiser, pairs: Samples, retain: Samples | None, turn: int, config: Train) -> dict[str, Any]:
    """One forward pass of policy and reference over a batch: `loss` to differentiate, the rest to log."""
    index, numbers, keys = pairs.pick(turn)
    parts, b = [pairs.noised(denoiser, index, keys)], len(index)
    kept = retain.pick(turn) if retain else ([], [], [])
    if retain:
        parts.append(retain.noised(denoiser, kept[0], kept[2]))
    batch = Noised.join(parts)
    model_pred = denoiser.predict(batch)
    errors = pairs.recall(index, numbers, denoiser.device)
    prediction = retain.recall(kept[0], kept[1], denoiser.device) if retain else None
    if errors is None:
        reference = denoiser.reference(batch)
        errors = squared_error(reference[: 2 * b], batch.target[: 2 * b]).view(2, b).T
        prediction = reference[2 * b :]
    winner, loser = squared_error(model_pred[: 2 * b], batch.target[: 2 * b]).view(2, b)
    dpo = dpo_loss(winner, loser, errors[:, 0], errors[:, 1], config.beta)
    preserve = (
        squared_error(model_pred[2 * b :], prediction).mean()
        if retain and prediction is not None
        else winner.new_zeros(())
    )
    loss = dpo.loss + config.preserve.weight * preserve
    if not torch.isfinite(loss):
        names = ", ".join(pairs.features.ids[i] for i in index[:8])
        raise SafetyDPOError(
            f"The loss is not finite at batch {turn} (pairs {names}): lower train.learning_rate or use float32."
        )
    return {
        "loss": loss,
        "dpo_loss": dpo.loss,
        "preserve_loss": preserve,
        "winner_error": winner.mean(),
        "loser_error": loser.mean(),
        "reference_winner_error": errors[:, 0].mean(),
        "reference_loser_error": errors[:, 1].mean(),
        "margin": dpo.margin.mean(),
        "implicit_accuracy": (dpo.margin > 0).float().mean(),
    }


def _optimizer(parameters: list[torch.nn.Parameter], config: Train) -> torch.optim.Optimizer:
    scale = config.batch_size * config.gradient_accumulation_steps if config.scale_lr else 1
    lr = config.learning_rate * scale
    if config.scale_lr:
        print(f"learning rate {config.learning_rate} x {scale} = {lr}")
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, lr=lr, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=config.weight_decay, betas=(0.9, 0.999), eps=1e-8)


def fit(
    denoiser: Denoiser, pairs: Samples, retain: Samples | None, config: Train, steps: int, name: str
) -> pd.DataFrame:
    """Optimise the adapters; returns one row a step."""
    if config.reference == "cached":
        pairs.remember(denoiser, keep_prediction=False)
        if retain:
            retain.remember(denoiser, keep_prediction=True)
    optimizer = _optimizer(denoiser.parameters, config)
    schedule = get_scheduler(
        config.lr_scheduler, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=steps
    )
    rows, turns = [], config.gradient_accumulation_steps
    bar = tqdm(range(steps), name, mininterval=2)
    for step in bar:
        begin, logged = time.perf_counter(), []
        for turn in range(turns):
            terms = train_step(denoiser, pairs, retain, step * turns + turn, config)
            (terms["loss"] / turns).backward()
            logged.append({k: v.detach() for k, v in terms.items()})
        norm = torch.nn.utils.clip_grad_norm_(denoiser.parameters, config.max_grad_norm)
        if not torch.isfinite(norm):
            raise SafetyDPOError(f"{name}: the gradient is not finite at step {step}: lower train.learning_rate.")
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        row = {k: math.fsum(float(t[k]) for t in logged) / turns for k in logged[0]}
        speed = pairs.batch_size * turns / (time.perf_counter() - begin)
        rows.append({"step": step, **row, "lr": lr, "grad_norm": float(norm), "pairs_per_s": speed})
        bar.set_postfix(loss=f"{row['loss']:.3f}", acc=f"{row['implicit_accuracy']:.2f}", refresh=False)
    return pd.DataFrame(rows)


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
) -> None:
    """Train the expert `name` and write its LoRA, training.parquet and model card into the folder `out`."""
    out = Path(out)
    seed = seed_of(seed, f"train/{name}")
    pairs = Samples(read_features(features, model.id), PAIR_ROLES, config.batch_size, config, seed)
    kept = None
    if retain:
        kept = Samples(
            read_features([retain], model.id), RETAIN_ROLES, config.preserve.batch_size, config, seed_of(seed, "retain")
        )
    denoiser = Denoiser(load_pipeline(model), model)
    denoiser.add_adapter(config, seed)
    log = fit(denoiser, pairs, kept, config, steps, name)
    header = made_by("train", expert=name, model=model.id, config=config.model_dump(), steps=steps, seed=seed)
    write_parquet(log, out / "training.parquet", header)
    write_text(expert_card(name, model.id, config, steps, len(pairs.features), log), out / "README.md")
    save_factors(denoiser.factors(), out, header)
