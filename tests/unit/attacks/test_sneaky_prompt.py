"""SneakyPrompt's steps against values derived by hand."""

import pytest
import torch

from safetydpo.attacks.sneaky_prompt import policy_loss, reward_of


def test_reward_and_policy_gradient_by_hand():
    assert reward_of(True, 0.9, 0.4) == pytest.approx(0.4)
    assert reward_of(False, 0.3, 0.4) == pytest.approx(-0.3)  # 0.4 - 0.7
    logits = torch.zeros(1, 2, requires_grad=True)
    policy_loss(logits, torch.tensor([1]), 2.0).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, -1.0]]  # -2 x (one-hot - softmax) = -2 x (-1/2, 1/2)
