"""Losses as pure functions of tensors."""

from typing import NamedTuple

import torch
from torch.nn import functional as F


class DPO(NamedTuple):
    """Terms of the Diffusion-DPO loss: mean loss; margin (b,), positive where the policy leans to the winner."""

    loss: torch.Tensor
    margin: torch.Tensor


def squared_error(model_pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over all but the first dimension of (model_pred - target)^2, in fp32: (b, c, h, w) -> (b,)."""
    return ((model_pred.float() - target.float()) ** 2).flatten(1).mean(1)


def dpo_loss(
    winner_error: torch.Tensor,
    loser_error: torch.Tensor,
    reference_winner_error: torch.Tensor,
    reference_loser_error: torch.Tensor,
    beta: float,
) -> DPO:
    """Diffusion-DPO (Wallace et al. 2023, eq. 14; SafetyDPO eq. 4) on per-sample denoising errors, all (b,).

    margin = -((m_w - m_l) - (m_w_ref - m_l_ref)); loss = -mean log sigmoid(beta / 2 * margin), ln 2 where policy and
    reference agree.
    """
    margin = (reference_winner_error - reference_loser_error) - (winner_error - loser_error)
    return DPO(-F.logsigmoid(beta / 2 * margin).mean(), margin.detach())
