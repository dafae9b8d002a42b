"""Losses as pure functions of tensors.

Each takes per-sample terms of shape (b,) and returns a `Preference`. Errors are those of `squared_error`, in fp32.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F


class Preference(NamedTuple):
    """Mean loss to differentiate; margin (b,), detached, positive where the policy leans to the winner."""

    loss: torch.Tensor
    margin: torch.Tensor


def squared_error(model_pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over all but the first dimension of (model_pred - target)^2, in fp32: (b, c, h, w) -> (b,)."""
    return ((model_pred.float() - target.float()) ** 2).flatten(1).mean(1)


def preference_margin(
    winner_error: torch.Tensor,
    loser_error: torch.Tensor,
    reference_winner_error: torch.Tensor,
    reference_loser_error: torch.Tensor,
) -> torch.Tensor:
    """-((m_w - m_l) - (m_w_ref - m_l_ref)), all (b,): how far policy, beyond reference, favours the winner."""
    return (reference_winner_error - reference_loser_error) - (winner_error - loser_error)


def dpo_loss(
    winner_error: torch.Tensor,
    loser_error: torch.Tensor,
    reference_winner_error: torch.Tensor,
    reference_loser_error: torch.Tensor,
    beta: float,
) -> Preference:
    """Diffusion-DPO (Wallace et al. 2023, eq. 14; SafetyDPO eq. 4) on per-sample denoising errors, all (b,).

    loss = -mean log sigmoid(beta / 2 * margin): ln 2 where policy and reference agree.
    """
    margin = preference_margin(winner_error, loser_error, reference_winner_error, reference_loser_error)
    return Preference(-F.logsigmoid(beta / 2 * margin).mean(), margin.detach())


def safeguard(
    winner_pred: torch.Tensor,
    winner_target: torch.Tensor,
    loser_pred: torch.Tensor,
    loser_target: torch.Tensor,
    mu: float,
) -> torch.Tensor:
    """Scale (b,) of the loser's gradient by which a step does not raise the winner's error (Diffusion-SDPO).

    With g_w, g_l the gradients of the two errors with respect to the predictions, (b, c, h, w) each,
    clamp((1 - mu) |g_w|^2 / <g_l, g_w>, 0, 1); 1 where the product is not positive (arXiv 2511.03317). The factor
    2 / (c h w) that both gradients share cancels.
    """
    g_w = (winner_pred - winner_target).detach().float().flatten(1)
    g_l = (loser_pred - loser_target).detach().float().flatten(1)
    product = (g_l * g_w).sum(1)
    scale = (1 - mu) * g_w.square().sum(1) / torch.where(product > 0, product, 1)
    return torch.where(product > 0, scale.clamp(0, 1), 1)


def sdpo_loss(
    winner_error: torch.Tensor,
    loser_error: torch.Tensor,
    reference_winner_error: torch.Tensor,
    reference_loser_error: torch.Tensor,
    beta: float,
    scale: torch.Tensor,
) -> Preference:
    """`dpo_loss` in value; the gradient through the loser's error is multiplied by `scale` (b,) of `safeguard`."""
    held = scale * loser_error + (1 - scale) * loser_error.detach()
    return dpo_loss(winner_error, held, reference_winner_error, reference_loser_error, beta)


def sft_loss(
    winner_error: torch.Tensor,
    loser_error: torch.Tensor,
    reference_winner_error: torch.Tensor,
    reference_loser_error: torch.Tensor,
) -> Preference:
    """Fine-tuning on the winner alone: its mean denoising error. The margin is reported as for DPO."""
    margin = preference_margin(winner_error, loser_error, reference_winner_error, reference_loser_error)
    return Preference(winner_error.mean(), margin.detach())
