"""Optimizers and the learning rate, by hand."""

import pytest
import torch
from tiny import train_config

from safetydpo.training.optimizers import learning_rate, make_optimizer


def test_adafactor_takes_the_rate_as_it_is():
    """First update of a zero matrix: g / sqrt(mean of squares) has RMS 1, so the weights move by the rate."""
    weight = torch.nn.Parameter(torch.zeros(8, 6))
    optimizer = make_optimizer([weight], train_config(optimizer="adafactor", learning_rate=0.01, weight_decay=0))
    weight.grad = torch.outer(torch.linspace(1, 2, 8), torch.linspace(-1, 3, 6))  # rank 1: the factored mean is exact
    optimizer.step()
    assert torch.allclose(weight, -0.01 * weight.grad.sign(), rtol=1e-3)


def test_the_effective_batch_scales_the_rate_and_is_printed(capsys):
    config = train_config(learning_rate=1e-5, scale_lr=True, batch_size=4, gradient_accumulation_steps=4)
    assert learning_rate(config, processes=2) == pytest.approx(3.2e-4)
    assert "1e-05 x batch 4 x accumulation 4 x processes 2 = 0.00032" in capsys.readouterr().out
