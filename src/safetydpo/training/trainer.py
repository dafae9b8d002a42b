"""Training an adapter: steps, accumulation, log, checkpoints. accelerate does devices, precision, several processes."""

import math
import random
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.optimization import get_scheduler

from safetydpo.config.training import Train
from safetydpo.errors import SafetyDPOError
from safetydpo.running.devices import sent, staged
from safetydpo.running.interrupts import Interrupt
from safetydpo.running.progress import progress
from safetydpo.storage.checkpoints import Checkpoints
from safetydpo.training.ahead import Ahead, on_this_gpu
from safetydpo.training.denoiser import Denoiser, Drawn, Noised
from safetydpo.training.losses import Preference, dpo_loss, safeguard, sdpo_loss, sft_loss, squared_error
from safetydpo.training.optimizers import make_optimizer
from safetydpo.training.reference import References, answer
from safetydpo.training.samples import Draw, Samples

Terms = dict[str, torch.Tensor]
# Steps in a row that fp16's loss scaling may skip.
OVERFLOWS = 20


def preference(
    config: Train, model_pred: torch.Tensor, target: torch.Tensor, errors: torch.Tensor, reference: torch.Tensor
) -> Preference:
    """The configured loss.

    model_pred and target (2b, c, h, w), winners first; their errors (b, 2) and the reference's, winner and loser.
    """
    four = (errors[:, 0], errors[:, 1], reference[:, 0], reference[:, 1])
    if config.loss == "sft":
        return sft_loss(*four)
    if config.loss == "sdpo":
        (winner_pred, loser_pred), (winner_target, loser_target) = model_pred.chunk(2), target.chunk(2)
        scale = safeguard(winner_pred, winner_target, loser_pred, loser_target, config.sdpo_mu)
        return sdpo_loss(*four, config.beta, scale)
    return dpo_loss(*four, config.beta)


class Batch(NamedTuple):
    """What a turn needs: draws of each learned set, what their batches (and the anchors') are made from, and the cached
    answers of the frozen model.
    """

    picked: list[list[Draw]]
    drawn: list[Drawn]
    known: list[torch.Tensor]


class Objective:
    """Loss and log terms of one batch of pairs: preference, preservation where there is a retain set, anchor."""

    def __init__(self, denoiser: Denoiser, pairs: Samples, retain: Samples | None, config: Train) -> None:
        self.denoiser, self.pairs, self.retain, self.config = denoiser, pairs, retain, config
        self.anchors = pairs.anchors() if config.anchor else None
        self.learned = [pairs, retain] if retain else [pairs]
        self.asked = [*self.learned, self.anchors] if self.anchors else self.learned  # of the frozen model
        self.known: list[References] = []
        self.seen: list[tuple[list[str], torch.Tensor]] = []  # ids of the last step's samples and their errors (b,)
        gpu = denoiser.device.type == "cuda"
        self.batches: Callable[[int], Batch] = Ahead(self._batch, on_this_gpu()) if gpu else self._batch

    def close(self) -> None:
        """End the thread that makes batches, where there is one."""
        if isinstance(self.batches, Ahead):
            self.batches.close()

    def remember(
        self,
        turns: int,
        accelerator: Accelerator,
        folder: Checkpoints | None = None,
        interrupt: Interrupt | None = None,
    ) -> None:
        """Compute what cached references need for `turns` turns."""
        for samples in self.asked:
            kept = Checkpoints(folder.folder, folder.made, f"reference-{samples.name}") if folder else None
            references = References(samples, turns)
            references.remember(self.denoiser, accelerator, kept, interrupt)
            self.known.append(references)

    def _batch(self, turn: int) -> Batch:
        """The CPU's part of a turn."""
        picked = [samples.pick(turn) for samples in self.learned]
        drawn = [samples.inputs(self.denoiser, draws) for samples, draws in zip(self.learned, picked, strict=True)]
        anchored = [picked[0]] if self.anchors else []
        if self.known:
            asked = zip(self.known, [*picked, *anchored], strict=True)
            return Batch(picked, drawn, [staged(known.recall(draws), self.denoiser.device) for known, draws in asked])
        if self.anchors:
            drawn.append(self.anchors.inputs(self.denoiser, picked[0]))
        return Batch(picked, drawn, [])

    def _references(self, batch: Batch, parts: list[Noised]) -> list[torch.Tensor]:
        """The frozen model's answer to each of `asked`: cached, or one forward pass over the whole batch."""
        if batch.known:
            return [sent(known, self.denoiser.device) for known in batch.known]
        learned = len(self.learned)
        # of a compiled network the batch of the policy has a graph
        groups = [g for g in (parts[:learned], parts[learned:]) if g] if self.denoiser.compiled else [parts]
        predictions = [
            prediction
            for group in groups
            for prediction in self.denoiser.reference(Noised.join(group)).split([len(part.target) for part in group])
        ]
        return [
            answer(samples, prediction, part.target)
            for samples, prediction, part in zip(self.asked, predictions, parts, strict=True)
        ]

    def terms(self, turn: int) -> Terms:
        """One forward pass of policy and reference: `loss` to differentiate, per-pair errors and means to log."""
        made = self.batches(turn)
        picked, parts = made.picked, [self.denoiser.noise(drawn) for drawn in made.drawn]
        known, batch = self._references(made, parts), Noised.join(parts[: len(self.learned)])
        model_pred = self.denoiser.predict(batch)
        n = 2 * len(picked[0])
        errors = answer(self.pairs, model_pred[:n], batch.target[:n])
        found = preference(self.config, model_pred[:n], batch.target[:n], errors, known[0])
        self.seen.append((self.pairs.ids(picked[0]), errors.detach().sum(1)))
        loss = found.loss
        preserve = anchor = loss.new_zeros(())
        if self.retain:
            drift = squared_error(answer(self.retain, model_pred[n:], batch.target[n:]), known[1])
            self.seen.append((self.retain.ids(picked[1]), drift.detach()))
            preserve = drift.mean()
            loss = loss + self.config.preserve.weight * preserve
        if self.anchors:
            anchor = squared_error(answer(self.anchors, model_pred[:n], batch.target[:n]), known[-1]).mean()
            loss = loss + self.config.anchor * anchor
        return {
            "loss": loss,
            "preference_loss": found.loss.detach(),
            "preserve_loss": preserve.detach(),
            "anchor_loss": anchor.detach(),
            "winner_error": errors[:, 0].detach().mean(),
            "loser_error": errors[:, 1].detach().mean(),
            "reference_winner_error": known[0][:, 0].mean(),
            "reference_loser_error": known[0][:, 1].mean(),
            "margin": found.margin.mean(),
            "implicit_accuracy": (found.margin > 0).float().mean(),
        }


def make_accelerator(config: Train, device: torch.device, **options: Any) -> Accelerator:
    """accelerate as the config wants it; SafetyDPOError where the device cannot do the precision."""
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise SafetyDPOError("train.mixed_precision fp16 needs a GPU: use bf16 or no on the CPU.")
    if device.index is not None:
        torch.cuda.set_device(device)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        **options,
    )


class Trainer:
    """Optimises a denoiser's adapters; `fit` returns one row a step."""

    def __init__(
        self,
        objective: Objective,
        steps: int,
        name: str,
        accelerator: Accelerator,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.objective, self.denoiser, self.config = objective, objective.denoiser, objective.config
        self.steps, self.name, self.checkpoints = steps, name, checkpoints
        self.accelerator = accelerator
        bare = make_optimizer(self.denoiser.parameters, self.config, accelerator.num_processes)
        # accelerate's wrapping of a schedule steps once a process, so it stays bare
        self.schedule = get_scheduler(
            self.config.lr_scheduler,
            bare,
            num_warmup_steps=self.config.warmup_steps,
            num_training_steps=steps,
        )
        self.denoiser.policy, self.optimizer = self.accelerator.prepare(self.denoiser.network, bare)
        self.rows: list[dict[str, float]] = []
        self.interrupt = Interrupt()
        self.overflows = 0

    def fit(self) -> pd.DataFrame:
        """Train, from the newest checkpoint if there is one; an interrupt saves one and raises SafetyDPOError."""
        with self.interrupt, closing(self.objective):
            self._resume()
            if self.config.reference == "cached":
                turns = self.steps * self.config.gradient_accumulation_steps
                self.objective.remember(turns, self.accelerator, self.checkpoints, self.interrupt)
            begun, rank = len(self.rows), self.accelerator.process_index
            bar = progress(range(begun, self.steps), self.name, initial=begun, total=self.steps, disable=rank > 0)
            for step in bar:
                row = self.step(step)
                if row is None:
                    self._save()
                    self.interrupt.end(f"{step} of {self.steps} steps of {self.name} are kept")
                self.rows.append(row)
                self.accelerator.log(row, step)
                shown = {"loss": f"{row['loss']:.3f}", "acc": f"{row['implicit_accuracy']:.2f}"}
                bar.set_postfix(shown | {"pairs_per_s": f"{row['pairs_per_s']:.1f}"}, refresh=False)
                if (step + 1) % self.config.checkpoint_every == 0:
                    self._save()
        return pd.DataFrame(self.rows)

    def step(self, step: int) -> dict[str, float] | None:
        """One optimizer step; its row of the log, or None where an interrupt dropped it half done."""
        begin, turns, logged = time.perf_counter(), self.config.gradient_accumulation_steps, []
        self.objective.seen.clear()
        terms: Terms = {}
        alone = self.accelerator.num_processes == 1
        for turn in range(step * turns, (step + 1) * turns):
            # several processes ask each other, for which they wait: once, where the step before has ended anyway
            if (alone or turn == step * turns) and self.interrupt.agreed(self.accelerator):
                return None
            with self.accelerator.accumulate(self.denoiser.policy):
                terms = self.objective.terms(turn)
                self.accelerator.backward(terms["loss"])
            if self.denoiser.graphs and turns > 1 and turn == step * turns:
                self.denoiser.graphs.keep_gradients()
            logged.append(torch.stack([value.detach().float() for value in terms.values()]))
        if step == 0:
            self._refuse_without_gradient()
        norm = self.accelerator.clip_grad_norm_(self.denoiser.parameters, self.config.max_grad_norm or math.inf)
        means = self.accelerator.reduce(torch.stack(logged).mean(0), "mean")
        *values, norm = torch.cat([means, norm.reshape(1)]).tolist()  # type: ignore[union-attr, list-item]
        found = dict(zip(terms, values, strict=True))
        self._refuse_non_finite(step, found, norm)
        row = {"step": step, **found, "lr": self.schedule.get_last_lr()[0]}
        self.optimizer.step()
        # loss scaling skips a step whose gradient is not finite; with a fused optimizer accelerate does not notice
        if math.isfinite(norm):
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        count = self.objective.pairs.batch_size * turns * self.accelerator.num_processes
        return row | {"grad_norm": norm, "pairs_per_s": count / (time.perf_counter() - begin)}

    def _refuse_without_gradient(self) -> None:
        weights = {name: p for name, p in self.denoiser.network.named_parameters() if p.requires_grad}
        if still := [name for name, weight in weights.items() if weight.grad is None]:
            raise SafetyDPOError(
                f"{self.name}: {len(still)} of {len(weights)} weights that are to train get no gradient, first "
                f"{still[0]}: take the module out of train.target_modules."
            )

    def _refuse_non_finite(self, step: int, terms: dict[str, float], norm: float) -> None:
        # fp16's loss scaling skips steps whose gradient overflows and tries a smaller scale; it must end some time
        self.overflows = 0 if math.isfinite(norm) else self.overflows + 1
        patience = OVERFLOWS if self.accelerator.scaler is not None else 0
        odd = next((name for name, value in terms.items() if not math.isfinite(value)), None)
        if odd is None and self.overflows <= patience:
            return
        names = [
            (name, bool(error.isfinite()))
            for ids, errors in self.objective.seen
            for name, error in zip(ids, errors, strict=True)
        ]
        everyone = gather_object(names)
        bad = dict.fromkeys([name for name, finite in everyone if not finite] or [name for name, _ in everyone])
        what = (odd or "gradient").replace("_", " ")
        frozen = all(math.isfinite(value) for name, value in terms.items() if name.startswith("reference_"))
        cause = "lower train.learning_rate" if frozen else "the frozen model's errors are not either: check model.id"
        raise SafetyDPOError(
            f"{self.name}: the {what} is not finite at step {step} ({', '.join(bad)}): "
            f"{cause}, or set train.mixed_precision to no."
        )

    def _save(self) -> None:
        """Everything that the rest of the training depends on, and the log so far."""
        scaler = self.accelerator.scaler
        rng = gather_object([_random_states()])
        if not self.checkpoints or not self.accelerator.is_main_process:
            return
        state = {
            "lora": self.denoiser.adapter_state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "rng": rng,
            "rows": self.rows,
        }
        self.checkpoints.save(len(self.rows), state)

    def _resume(self) -> None:
        found = self.checkpoints.load(self.accelerator.is_main_process) if self.checkpoints else None
        if found is None:
            return
        _, state = found
        self.denoiser.load_adapter_state(state["lora"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        _set_random_states(state["rng"][self.accelerator.process_index])
        self.rows = state["rows"]
        print(f"{self.name}: going on after step {len(self.rows)} of {self.steps}")


def _random_states() -> dict[str, Any]:
    """States of the generators of torch, numpy and Python, in types that a checkpoint holds."""
    kind, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [kind, keys.tolist(), *rest],  # type: ignore[union-attr]
        "python": random.getstate(),
    }


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    np.random.set_state(tuple(states["numpy"]))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
