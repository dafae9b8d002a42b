"""Optimizers and learning rates by config."""

import torch
from transformers.optimization import Adafactor

from safetydpo.config.training import Train


def learning_rate(config: Train, processes: int = 1) -> float:
    """The configured rate, times the effective batch where `scale_lr` says so (then it is printed)."""
    if not config.scale_lr:
        return config.learning_rate
    lr = config.learning_rate * config.batch_size * config.gradient_accumulation_steps * processes
    print(
        f"learning rate {config.learning_rate:g} x batch {config.batch_size} x accumulation "
        f"{config.gradient_accumulation_steps} x processes {processes} = {lr:g}"
    )
    return lr


def make_optimizer(parameters: list[torch.nn.Parameter], config: Train, processes: int = 1) -> torch.optim.Optimizer:
    """AdamW, or Adafactor as the published SDXL training has it: a given rate, not relative to step or weights.

    (torch's own Adafactor multiplies the rate by the RMS of the weights, which for a LoRA's zero B is next to nothing.)
    """
    lr = learning_rate(config, processes)
    if config.optimizer == "adafactor":
        options = {"scale_parameter": False, "relative_step": False, "clip_threshold": 1.0}
        return Adafactor(parameters, lr=lr, weight_decay=config.weight_decay, **options)
    return torch.optim.AdamW(
        parameters, lr=lr, weight_decay=config.weight_decay, betas=(0.9, 0.999), eps=1e-8, fused=True
    )
