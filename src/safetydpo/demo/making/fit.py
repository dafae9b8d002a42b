"""One small training loop for all demo-world models: AdamW, warm-up and cosine decay, EMA, progress, resume.

A step's batch depends on (seed, step, rank) alone, so a run that was killed goes on where its last checkpoint was.
Started under `torchrun`, gradients are averaged over the processes: on two cores two processes with one thread each
are faster than one with two.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from safetydpo.running.progress import progress


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: linear warm-up to `lr`, cosine decay to `end` x `lr` at `steps`; 1 stays at `lr`."""

    steps: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float = 0.0
    end: float = 0.0
    checkpoint_every: int = 200

    def factor(self, step: int) -> float:
        """Learning-rate factor of a step (0-based)."""
        progress = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return min(1.0, (step + 1) / self.warmup) * (self.end + (1 - self.end) * decay)


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; joins the group that torchrun announces."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo")
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    if world == 1:
        return
    flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= world
    offset = 0
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[offset : offset + p.grad.numel()].view_as(p.grad))
            offset += p.grad.numel()


def fit(name: str, model: nn.Module, loss_of: Callable[[int, int], torch.Tensor], plan: Schedule, folder: Path) -> None:
    """Train `model` in place; `loss_of(step, rank)` gives the loss of a step. With EMA, the average is what remains.

    Resumes from `folder/<name>.pt` (working state, never shipped) when it is there.
    """
    rank, world = rank_and_world()
    parameters = [p for p in model.parameters() if p.requires_grad]
    betas = (0.9, 0.99)
    optimizer = torch.optim.AdamW(parameters, plan.lr, betas, weight_decay=plan.weight_decay, fused=True)
    average = [p.detach().clone() for p in parameters]
    checkpoint, start = folder / f"{name}.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]
    bar = progress(range(start, plan.steps), name, initial=start, total=plan.steps, disable=rank > 0)
    shown = 0.0
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * plan.factor(step)
        loss = loss_of(step, rank)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        _average_gradients(parameters, world)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(plan.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for value, p in zip(average, parameters, strict=True):
                value.lerp_(p, 1 - decay)
        shown = loss.item() if step == start else 0.98 * shown + 0.02 * loss.item()
        bar.set_postfix(loss=f"{shown:.4g}", refresh=False)
        if rank == 0 and (step + 1) % plan.checkpoint_every == 0:
            _save(checkpoint, model, optimizer, average, step + 1)
    for p, value in zip(parameters, average, strict=True):
        p.data.copy_(value)


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: list, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step}
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)
