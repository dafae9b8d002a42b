"""Losses against values derived by hand."""

import math

import pytest
import torch

from safetydpo.training.losses import dpo_loss, safeguard, sdpo_loss, sft_loss, squared_error


def errors(*values):
    return [torch.tensor([v], requires_grad=True) for v in values]


def test_squared_error_is_the_mean_of_squares_of_each_sample():
    model_pred = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 2.0]]]])
    assert squared_error(model_pred, torch.zeros_like(model_pred)).tolist() == [7.5, 1.0]  # (1+4+9+16)/4, 4/4


def test_squared_error_is_fp32_whatever_comes_in():
    # 257 is not a bfloat16: a subtraction in bfloat16 would see 256
    assert squared_error(torch.full((1, 1), 256.0).bfloat16(), torch.full((1, 1), 257.0)).item() == 1.0


def test_dpo_where_policy_is_reference_is_ln_2():
    found = dpo_loss(*errors(0.3, 0.5, 0.3, 0.5), beta=5000)
    assert found.loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert found.margin.item() == 0


def test_dpo_by_hand():
    # (m_w - m_l) - (m_w_ref - m_l_ref) = (0.1 - 0.5) - (0.2 - 0.4) = -0.2: margin 0.2, logit 10 / 2 * 0.2 = 1
    found = dpo_loss(*errors(0.1, 0.5, 0.2, 0.4), beta=10)
    assert found.margin.item() == pytest.approx(0.2)
    assert found.loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_dpo_is_the_mean_over_pairs():
    four = [torch.tensor(x) for x in ([0.1, 0.2], [0.5, 0.2], [0.2, 0.2], [0.4, 0.2])]
    expected = (math.log(1 + math.exp(-1)) + math.log(2)) / 2
    assert dpo_loss(*four, beta=10).loss.item() == pytest.approx(expected)


def test_sft_is_the_winners_error_and_reports_the_margin():
    winner, loser, *reference = errors(0.1, 0.5, 0.2, 0.4)
    found = sft_loss(winner, loser, *reference)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(0.1)
    assert found.margin.item() == pytest.approx(0.2)
    assert winner.grad.item() == 1
    assert loser.grad is None


def test_safeguard_by_hand():
    # gradients with respect to the predictions, up to a common factor: w = (1, 2), l below
    def scale(loser, mu=0.9):
        winner = torch.tensor([[[[1.0, 2.0]]]])
        return safeguard(winner, torch.zeros(1, 1, 1, 2), torch.tensor([[[loser]]]), torch.zeros(1, 1, 1, 2), mu).item()

    assert scale([3.0, 1.0]) == pytest.approx(0.1)  # (1 - 0.9) * 5 / (3 + 2)
    assert scale([3.0, 1.0], mu=0.0) == pytest.approx(1.0)
    assert scale([0.1, 0.0]) == 1.0  # 0.5 / 0.1 = 5, clamped
    assert scale([-1.0, 0.0]) == 1.0  # they do not oppose each other
    assert scale([2.0, -1.0]) == 1.0  # orthogonal


def test_sdpo_has_the_value_of_dpo_and_a_held_back_gradient_of_the_loser():
    winner, loser, *reference = errors(0.1, 0.5, 0.2, 0.4)
    found = sdpo_loss(winner, loser, *reference, beta=10, scale=torch.tensor([0.25]))
    found.loss.backward()
    assert found.loss.item() == pytest.approx(math.log(1 + math.exp(-1)))
    slope = 5 / (1 + math.exp(1))  # d loss / d m_w = beta / 2 * sigmoid(-1)
    assert winner.grad.item() == pytest.approx(slope)
    assert loser.grad.item() == pytest.approx(-0.25 * slope)


def test_a_safeguarded_step_does_not_raise_the_winners_error():
    """On the predictions themselves: a small step along the sdpo gradient, where plain DPO's would raise it."""
    rng = torch.Generator().manual_seed(1)
    winner = torch.randn(1, 4, generator=rng, dtype=torch.float64)
    loser = 3 * winner + 0.1 * torch.randn(1, 4, generator=rng, dtype=torch.float64)  # nearly parallel, longer
    target = torch.zeros(1, 4, dtype=torch.float64)
    shared = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)  # a parameter both predictions move with

    def change(scale):
        w, lo = winner + shared, loser + shared
        errors = (w - target).square().mean(1), (lo - target).square().mean(1)
        found = sdpo_loss(*errors, torch.zeros(1), torch.zeros(1), beta=1.0, scale=scale)
        (gradient,) = torch.autograd.grad(found.loss, shared)
        return ((winner - 1e-4 * gradient).square().mean() - winner.square().mean()).item()

    assert change(torch.ones(1)) > 0
    assert change(safeguard(winner, target, loser, target, mu=0.9)) < 0
