"""The objective on rewards: Bradley-Terry, group reward entropy, and the pull to a reference.

Everything here is about K numbers a group, so it is float64 and left to autograd; the step from
∂L/∂r to the weights is `update`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA_FLOOR = 1e-6
"""Below this spread a group's order is rounding noise, and 1/σ would make it loud."""


def sigma(r_K: Tensor) -> Tensor:
    """The group's standard deviation with 1/K, as eq. 6 takes it."""
    return r_K.std(correction=0)


def bradley_terry(r_winner: Tensor, r_loser: Tensor) -> Tensor:
    """L_BT = −log σ(r_w − r_l)   (eq. 5)."""
    return -F.logsigmoid(r_winner - r_loser)


def group_reward_entropy(r_K: Tensor) -> Tensor:
    """L_GRE = −Σ p log p with p = softmax((r − mean) / max(σ, floor))   (eq. 6).

    Between the entropy of the most uneven standardised group and log K; the constant 0.365 at
    K = 2.
    """
    standard_K = (r_K - r_K.mean()) / sigma(r_K).clamp_min(SIGMA_FLOOR)
    log_p_K = F.log_softmax(standard_K, dim=0)
    return -(log_p_K.exp() * log_p_K).sum()


def kl_to_reference(r_K: Tensor, reference_K: Tensor) -> Tensor:
    """KL(p_ref ‖ p), p = softmax(r / τ), τ = the reference's σ in this group, no gradient in it."""
    tau = sigma(reference_K).clamp_min(SIGMA_FLOOR)
    log_reference_K = F.log_softmax(reference_K / tau, dim=0)
    log_p_K = F.log_softmax(r_K / tau, dim=0)
    return (log_reference_K.exp() * (log_reference_K - log_p_K)).sum()


@dataclass(frozen=True, slots=True)
class GroupRewards:
    """One group on its way into the loss.

    Attributes:
        r_K: rewards by the head in training.
        reference_K: rewards by the reference at the same ω; None where nothing pulls.
        preferred: places of (winner, loser) where somebody outside labelled it.
    """

    r_K: Tensor
    reference_K: Tensor | None
    preferred: tuple[int, int] | None

    @property
    def has_label(self) -> bool:
        """False where the rewards are equal and nobody else says which is better."""
        return self.preferred is not None or bool(sigma(self.r_K.double()) > SIGMA_FLOOR)


@dataclass(frozen=True, slots=True)
class Loss:
    """Means over groups (of those that have the term), and the gradient by reward.

    Attributes:
        gradient_N: ∂L/∂r of all groups' samples, in order, float32.
        bt, gre, kl, total: None where no group has the term.
        gre_groups: how many groups GRE was taken of.
    """

    gradient_N: Tensor
    bt: float
    gre: float | None
    kl: float | None
    total: float
    gre_groups: int


def loss_of_groups(groups: Sequence[GroupRewards], *, alpha: float, kl_weight: float) -> Loss:
    """L = mean over groups of (1 − α) L_BT + α L_GRE   (eq. 7), + kl_weight · KL.

    The winner and the loser are the group's own best and worst (pseudo labels), or the outside
    label. A labelled group, and one of two samples, has BT alone: GRE would sharpen toward the
    reward model's own favourite, or is constant.

    Args:
        groups: each with a label (`GroupRewards.has_label`).
        alpha, kl_weight: of the run.

    Raises:
        ValueError: no groups.
    """
    if not groups:
        raise ValueError("no group to learn from")
    leaves: list[Tensor] = []
    bts: list[Tensor] = []
    gres: list[Tensor] = []
    kls: list[Tensor] = []
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        r_K = group.r_K.detach().double().cpu().requires_grad_()
        leaves.append(r_K)
        winner, loser = group.preferred or (int(r_K.argmax()), int(r_K.argmin()))
        bt = bradley_terry(r_K[winner], r_K[loser])
        bts.append(bt.detach())
        if group.preferred is None and len(r_K) > 2:
            gre = group_reward_entropy(r_K)
            gres.append(gre.detach())
            total = total + (1.0 - alpha) * bt + alpha * gre
        else:
            total = total + bt
        if kl_weight > 0 and group.reference_K is not None:
            reference_K = group.reference_K.detach().double().cpu()
            # A reference that sees no difference has no opinion to hold on to.
            if sigma(reference_K) > SIGMA_FLOOR:
                kl = kl_to_reference(r_K, reference_K)
                kls.append(kl.detach())
                total = total + kl_weight * kl
    total = total / len(groups)
    gradients = torch.autograd.grad(total, leaves)
    return Loss(
        gradient_N=torch.cat(gradients).float(),
        bt=_mean(bts) or 0.0,
        gre=_mean(gres),
        kl=_mean(kls),
        total=float(total.detach()),
        gre_groups=len(gres),
    )


def _mean(values: Sequence[Tensor]) -> float | None:
    return float(torch.stack(list(values)).mean()) if values else None
