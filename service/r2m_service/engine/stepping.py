"""From measured groups to an optimizer step: the same for the live head and its controls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from r2m_service.domain.method import MethodSettings
from r2m_service.modeling.head import Head
from r2m_service.modeling.loss import GroupRewards, Loss, loss_of_groups
from r2m_service.modeling.update import AdamWStep, Moments, gradients


def loss_by_reward(groups: Sequence[GroupRewards], method: MethodSettings) -> Loss:
    """The objective, and its gradient by reward."""
    with torch.enable_grad():
        return loss_of_groups(groups, alpha=method.alpha, kl_weight=method.kl_weight)


def adamw_step(
    head: Head,
    moments: Moments,
    loss: Loss,
    method: MethodSettings,
    *,
    omega: float,
    rte_KRs: Sequence[Tensor],
    c_KPs: Sequence[Tensor | None],
    j_KPs: Sequence[Tensor | None],
) -> AdamWStep:
    """A step from a head, ready to be taken tensor by tensor.

    Args:
        rte_KRs, c_KPs, j_KPs: of each group: its RTEs, and its states pooled under the head; None
            for a head without attention.
    """
    gradient = gradients(
        head,
        omega=omega,
        g_N=loss.gradient_N.to(head.w_R.device),
        rte_NR=torch.cat(list(rte_KRs)),
        c_NP=_cat(c_KPs),
        j_NP=_cat(j_KPs),
    )
    return AdamWStep(
        head,
        gradient,
        moments,
        learning_rate=method.learning_rate,
        weight_decay=method.weight_decay,
        max_grad_norm=method.max_grad_norm,
    )


def _cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None
