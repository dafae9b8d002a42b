"""DPO loss against values derived by hand."""

import math

import pytest
import torch

from safetydpo.losses import dpo_loss, squared_error


def test_equal_policy_and_reference_give_ln_2():
    errors = torch.tensor([0.3, 0.9]), torch.tensor([0.4, 0.2])
    assert dpo_loss(*errors, *errors, beta=5000).loss.item() == pytest.approx(math.log(2), abs=1e-7)


def test_worked_example():
    # margins: (0.5 - 0.7) - (0.4 - 0.8) = 0.2 and (0.5 - 0.6) - (0.6 - 0.5) = -0.2; beta 10:
    # -log sigmoid(5 * 0.2) = log(1 + e^-1) = 0.3132617, -log sigmoid(-1) = log(1 + e) = 1.3132617; mean 0.8132617
    terms = dpo_loss(
        torch.tensor([0.4, 0.6]), torch.tensor([0.8, 0.5]), torch.tensor([0.5, 0.5]), torch.tensor([0.7, 0.6]), beta=10
    )
    assert terms.margin.tolist() == pytest.approx([0.2, -0.2])
    assert terms.loss.item() == pytest.approx(0.8132617, abs=1e-6)


def test_descent_lowers_the_winners_error_and_raises_the_losers():
    winner, loser = torch.tensor([0.5], requires_grad=True), torch.tensor([0.5], requires_grad=True)
    dpo_loss(winner, loser, torch.tensor([0.5]), torch.tensor([0.5]), beta=8).loss.backward()
    # d/dm_w of -log sigmoid(-beta/2 * (m_w - m_l)) at 0 is beta/2 * sigmoid(0) = 2
    assert winner.grad.item() == pytest.approx(2.0)
    assert loser.grad.item() == pytest.approx(-2.0)


def test_squared_error_is_a_mean_per_sample_in_fp32():
    prediction = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]], dtype=torch.bfloat16)
    target = torch.tensor([[[[0.0, 0.0]]], [[[3.0, 1.0]]]])
    error = squared_error(prediction, target)  # (1 + 4) / 2 and (9 + 1) / 2
    assert error.dtype == torch.float32
    assert error.tolist() == [2.5, 5.0]


def test_bf16_errors_are_squared_in_fp32():
    # 1 + 2^-7 is exact in bf16, its square 1 + 2^-6 + 2^-14 = 1.01568603515625 is not: bf16 would round to 1.015625
    prediction = torch.full((1, 1, 1, 1), 1 + 2**-7, dtype=torch.bfloat16)
    assert squared_error(prediction, torch.zeros_like(prediction)).item() == 1.01568603515625
