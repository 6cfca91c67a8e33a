"""A reward head that learns, in one process: the service's own modeling and gate, without a server.

What a server does with an align (docs/algorithm.md) in the same order: pool under the live head,
loss, gradient in closed form, one AdamW step, drift against version 0, verdict. A test sends the
same groups to a real server and compares the weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from r2m_service.domain.evidence import feedback_gain
from r2m_service.domain.gate import decide, measure_drift
from r2m_service.domain.method import MethodSettings, with_defaults
from r2m_service.modeling.attention import pool
from r2m_service.modeling.head import Head, Parts, first_head
from r2m_service.modeling.loss import GroupRewards, loss_of_groups, sigma
from r2m_service.modeling.update import AdamWStep, Moments, gradients

States = Sequence[Tensor]
"""h_SP of each sample: whatever the arm attends to."""


@dataclass(frozen=True, slots=True)
class Group:
    """The K responses of one query.

    Attributes:
        rte_KR: reward token embeddings.
        states: of each response; None: the head has no attention.
        preferred: places of (winner, loser) where somebody outside labelled the group.
    """

    rte_KR: Tensor
    states: States | None
    preferred: tuple[int, int] | None = None

    def pair(self) -> Group:
        """Winner and loser alone, as the replay buffer keeps a labelled group."""
        assert self.preferred is not None
        places = list(self.preferred)
        states = None if self.states is None else [self.states[place] for place in places]
        return Group(self.rte_KR[places], states, (0, 1))


@dataclass(frozen=True, slots=True)
class Aligned:
    """What an align came to; None where nothing was measured."""

    verdict: str
    bt: float | None = None
    gre: float | None = None
    sigma: float | None = None
    spread_ratio: float | None = None
    rank_correlation: float | None = None
    feedback_gain: float | None = None


def method_of(given: Mapping[str, Any], *, state_width: int, attends: bool) -> MethodSettings:
    """The settings that a run created with these `method` keys would have."""
    values = with_defaults(given, state_width=state_width, attends=attends)
    return TypeAdapter(MethodSettings).validate_python(values)


class Learner:
    """One run's live head.

    Args:
        method: of the run (`method_of`).
        weight_R, bias: the frozen reward model's scoring head.
        width_P: width of the states attended to.
        attends: False for `feedback: none`.
    """

    def __init__(
        self,
        method: MethodSettings,
        *,
        weight_R: Tensor,
        bias: Tensor | None,
        width_P: int,
        attends: bool = True,
    ) -> None:
        self.method = method
        self.head = self.origin = first_head(
            weight_R=weight_R,
            bias=bias,
            width_P=width_P,
            inner=method.width,
            seed=method.seed,
            attends=attends,
            metadata={},
        )
        self._moments = Moments.zeros(self.head)
        self._replay: deque[Group] = deque(maxlen=method.replay_groups)
        self._rejected = 0
        self.frozen = False

    @property
    def t(self) -> int:
        """Accepted updates."""
        return self._moments.t

    @property
    def omega(self) -> float:
        """What the live head scores with."""
        return self.method.omega.at(self.t + 1)

    @torch.no_grad()
    def score(self, rte_NR: Tensor, states: States | None) -> Tensor:
        """r_N by the live head."""
        return _parts(self.head, rte_NR, states).rewards(self.omega)

    @torch.no_grad()
    def vanilla(self, rte_NR: Tensor) -> Tensor:
        """The frozen reward model's own r_N."""
        return rte_NR @ self.origin.w_R + self.origin.bias

    @torch.no_grad()
    def align(self, groups: Sequence[Group]) -> Aligned:
        """One update after the policy's; the live head moves if the gate lets it."""
        if self.frozen:
            return Aligned("frozen")
        replayed = list(self._replay)
        if self.method.labels != "pseudo":
            self._replay.extend(one.pair() for one in groups if one.preferred is not None)
        used = [self._measure(one) for one in groups if self._teaches(one)]
        used = [one for one in used if one.rewards.has_label]
        own = len(used)
        used += [self._measure(one) for one in replayed]
        if not used:
            return Aligned("skipped")
        with torch.enable_grad():
            loss = loss_of_groups(
                [one.rewards for one in used],
                alpha=self.method.alpha,
                kl_weight=self.method.kl_weight,
            )
        attends = self.head.attends
        optimizer = AdamWStep(
            self.head,
            gradients(
                self.head,
                omega=self.omega,
                g_N=loss.gradient_N,
                rte_NR=torch.cat([one.group.rte_KR for one in used]),
                c_NP=torch.cat([one.c_KP for one in used]) if attends else None,
                j_NP=torch.cat([one.j_KP for one in used]) if attends else None,
            ),
            self._moments,
            learning_rate=self.method.learning_rate,
            weight_decay=self.method.weight_decay,
            max_grad_norm=self.method.max_grad_norm,
        )
        for name in optimizer.names:
            optimizer.update(name)
        step = optimizer.finish()
        candidate = Head(step.tensors, {})
        omega = self.method.omega.at(step.moments.t + 1)
        now = [_rewards(candidate, one.group, omega) for one in used[:own]]
        before = [_rewards(self.origin, one.group, omega) for one in used[:own]]
        drift = measure_drift(now, before) if own else None
        decision = decide(self.method.gate, finite=step.finite, drift=drift)
        if decision.moves:
            self.head, self._moments, self._rejected = candidate, step.moments, 0
        elif decision.verdict == "rejected":
            self._rejected += 1
            self.frozen = self._rejected == self.method.gate.freeze_after
        return Aligned(
            decision.verdict,
            bt=loss.bt,
            gre=loss.gre,
            sigma=sum(float(sigma(one.rewards.r_K)) for one in used) / len(used),
            spread_ratio=drift.spread_ratio if drift else None,
            rank_correlation=drift.rank_correlation if drift else None,
            feedback_gain=self._gain(used[:own]),
        )

    def _gain(self, measured: Sequence[_Measured]) -> float | None:
        """What rewards lose where each group has the states of the one before."""
        if not measured or not self.head.attends or self.head.blind:
            return None
        own = [one.rewards.r_K.tolist() for one in measured]
        other = []
        for place, one in enumerate(measured):
            theirs = measured[place - 1].group.states
            assert theirs is not None
            states = [theirs[at % len(theirs)] for at in range(len(one.group.rte_KR))]
            parts = _parts(self.head, one.group.rte_KR, states)
            other.append(parts.rewards(self.omega).tolist())
        return feedback_gain(own, other)

    def _teaches(self, group: Group) -> bool:
        return group.preferred is not None or self.method.labels != "outside_only"

    def _measure(self, group: Group) -> _Measured:
        states = group.states
        c_KP = j_KP = group.rte_KR.new_zeros(0)
        if self.head.attends:
            assert states is not None
            assert self.head.v_P is not None
            u_KP, z_P = self.head.queries(group.rte_KR), (1.0 - self.omega) * self.head.v_P
            pooled = [pool(h_SP, u_P, z_P) for h_SP, u_P in zip(states, u_KP, strict=True)]
            c_KP = torch.stack([one.c_P for one in pooled])
            j_KP = torch.stack([one.j_P for one in pooled if one.j_P is not None])
        parts = self.head.parts(group.rte_KR, c_KP if self.head.attends else None)
        reference = _parts(self.origin, group.rte_KR, states)
        preferred = None if self.method.labels == "pseudo" else group.preferred
        rewards = GroupRewards(parts.rewards(self.omega), reference.rewards(self.omega), preferred)
        return _Measured(group, rewards, c_KP, j_KP)


@dataclass(frozen=True, slots=True)
class _Measured:
    group: Group
    rewards: GroupRewards
    c_KP: Tensor
    j_KP: Tensor


def _parts(head: Head, rte_NR: Tensor, states: States | None) -> Parts:
    if head.blind:
        return head.parts(rte_NR, None)
    assert states is not None
    u_NP = head.queries(rte_NR)
    c_NP = torch.stack([pool(h_SP, u_P).c_P for h_SP, u_P in zip(states, u_NP, strict=True)])
    return head.parts(rte_NR, c_NP)


def _rewards(head: Head, group: Group, omega: float) -> list[float]:
    return _parts(head, group.rte_KR, group.states).rewards(omega).tolist()
