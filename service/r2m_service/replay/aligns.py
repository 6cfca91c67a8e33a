"""The recorded aligns run again, under the same settings or others.

With hidden states in full every step is computed anew and is exact. Without, c and j are those of
the head that asked for them: exact for a branch's first step, and an approximation from the second
on, as soon as the replayed head differs from the recorded one. The candidate's own c is never
recorded, so without states its drift, and a verdict close to a bound, are approximate too.

Where the journal lacks a step that moved the live head (a crash between the commit and the entry, a
full disk, a file that is gone), what follows it is approximate, states or none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from r2m.tensors import TensorValue
from r2m_service.domain.gate import decide, measure_drift
from r2m_service.domain.method import MethodSettings
from r2m_service.engine.states import quantized_states, states_tensor
from r2m_service.modeling.attention import pool
from r2m_service.modeling.head import Head
from r2m_service.modeling.loss import GroupRewards, Loss, loss_of_groups
from r2m_service.modeling.update import AdamWStep, Moments, gradients
from r2m_service.replay.rewards import vector


@dataclass(frozen=True, slots=True)
class Replayed:
    """One step: as it was, and as it comes out now.

    Attributes:
        exact: whether c and j are those of the replayed head, and nothing before it is missing.
        loss, verdict, spread_ratio: None, `skipped`, None where no group was used.
    """

    run: str
    branch: str
    step: int
    exact: bool
    recorded_loss: float | None
    recorded_verdict: str
    loss: float | None
    verdict: str
    spread_ratio: float | None
    rank_correlation: float | None


@dataclass(slots=True)
class _Sample:
    row: Mapping[str, Any]
    rte: Tensor
    states: Tensor | None


class Replay:
    """One branch of a run, replayed from the head that its first recorded step was trained from.

    Args:
        first: that head.
        moments: the optimizer's state that goes with it.
        change: gives the settings of a step from those it was recorded with.
        whole: whether `moments` are what the first step went on from.
    """

    def __init__(
        self,
        first: Head,
        moments: Moments,
        change: Callable[[MethodSettings], MethodSettings],
        *,
        whole: bool = True,
    ) -> None:
        self._head = first
        self._moments = moments
        self._change = change
        self._t: int | None = None
        self._same = self._whole = whole
        self._live: int | None = None

    @torch.no_grad()
    def step(self, row: Mapping[str, Any], recorded: MethodSettings) -> Replayed:
        """Run one align again."""
        settings: MethodSettings = self._change(recorded)
        t = row["t"] if self._t is None else self._t
        at = settings.omega.at(t + 2)
        groups = [
            [_sample(one) for one in members]
            for _, members in groupby(row["rows"], key=lambda one: one["group"])
        ]
        full = all(one.states is not None for group in groups for one in group)
        if self._live not in (None, row["head"]):
            self._same = self._whole = False  # a step in between was not recorded
        self._live = row["live"]
        exact = self._whole and (full or self._same or not self._head.attends)
        answered = _answered(row)
        if not groups:
            return Replayed(
                row["run"], row["branch"], row["step"], exact, answered, row["verdict"],
                None, "skipped", None, None,
            )  # fmt: skip
        loss, candidate, moments, finite = self._update(groups, settings, t)
        drift = None
        own = [group for group in groups if not group[0].row["replayed"]]
        if settings.gate.checks_drift and finite:
            drift = measure_drift(
                [self._rewards(candidate, group, at).tolist() for group in own],
                [_reference(group, at).tolist() for group in own],
            )
        decision = decide(settings.gate, finite=finite, drift=drift)
        if decision.moves:
            self._head, self._moments, self._t = candidate, moments, t + 1
        else:
            self._t = t
        # What was recorded stays true of the replayed head while both move alike.
        moved = row["candidate"] is not None and row["live"] == row["candidate"]
        self._same &= settings == recorded and decision.moves == moved
        return Replayed(
            row["run"], row["branch"], row["step"], exact, answered, row["verdict"],
            loss.total, decision.verdict,
            drift.spread_ratio if drift else None, drift.rank_correlation if drift else None,
        )  # fmt: skip

    def _update(
        self, groups: Sequence[Sequence[_Sample]], settings: MethodSettings, t: int
    ) -> tuple[Loss, Head, Moments, bool]:
        head, omega = self._head, settings.omega.at(t + 1)
        flat = [one for group in groups for one in group]
        rte_NR = torch.stack([one.rte for one in flat])
        c_NP, j_NP = self._pooled(head, flat, omega)
        r_N = head.parts(rte_NR, c_NP).rewards(omega)
        given: list[GroupRewards] = []
        start = 0
        for group in groups:
            end = start + len(group)
            given.append(
                GroupRewards(r_N[start:end], _reference(group, omega), _preferred(group, settings))
            )
            start = end
        with torch.enable_grad():
            loss = loss_of_groups(given, alpha=settings.alpha, kl_weight=settings.kl_weight)
        gradient = gradients(
            head, omega=omega, g_N=loss.gradient_N, rte_NR=rte_NR, c_NP=c_NP, j_NP=j_NP
        )
        adam = AdamWStep(
            head,
            gradient,
            self._moments,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
        )
        for name in adam.names:
            adam.update(name)
        done = adam.finish()
        candidate = Head(
            done.tensors, {**head.metadata, "omega": settings.omega.at(t + 2), "t": t + 1}
        )
        return loss, candidate, done.moments, done.finite

    def _pooled(
        self, head: Head, samples: Sequence[_Sample], omega: float
    ) -> tuple[Tensor | None, Tensor | None]:
        """C and j of a batch: computed where the states are there, else as recorded."""
        if not head.attends:
            return None, None
        assert head.v_P is not None
        z_P = (1.0 - omega) * head.v_P
        contexts: list[Tensor] = []
        moments: list[Tensor] = []
        for one in samples:
            c_P, j_P = vector(one.row["c"]), vector(one.row["j"])
            if one.states is not None:
                pooled = pool(one.states, head.queries(one.rte[None])[0], z_P)
                c_P, j_P = pooled.c_P, pooled.j_P
            assert c_P is not None
            assert j_P is not None
            contexts.append(c_P)
            moments.append(j_P)
        return torch.stack(contexts), torch.stack(moments)

    def _rewards(self, head: Head, group: Sequence[_Sample], omega: float) -> Tensor:
        rte_KR = torch.stack([one.rte for one in group])
        c_KP, _ = self._pooled(head, group, omega)
        return head.parts(rte_KR, c_KP).rewards(omega)


def branches(rows: Iterator[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The recorded aligns by run and branch, each step once (a retry is not recorded).

    In the order of the steps: files are named by the clock, which may have been set back.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["run"], row["branch"]), []).append(row)
    return {key: sorted(steps, key=lambda row: row["step"]) for key, steps in found.items()}


def _sample(row: Mapping[str, Any]) -> _Sample:
    rte = vector(row["rte"])
    assert rte is not None
    states = None
    if row["states"] is not None:
        value = TensorValue(row["states_dtype"], tuple(row["states_shape"]), row["states"])
        here = torch.device("cpu")
        if value.dtype == "int8":
            states = quantized_states(value, here).dense()
        else:
            states = states_tensor(value, here)
    return _Sample(row, rte, states)


def _reference(group: Sequence[_Sample], omega: float) -> Tensor:
    fused = torch.tensor([one.row["reference_fused"] for one in group])
    base = torch.tensor([one.row["reference_base"] for one in group])
    return (1.0 - omega) * fused + omega * base


def _preferred(group: Sequence[_Sample], settings: MethodSettings) -> tuple[int, int] | None:
    labels = [one.row["label"] for one in group]
    if settings.labels == "pseudo" or 1 not in labels:
        return None
    return labels.index(1), labels.index(-1)


def _answered(row: Mapping[str, Any]) -> float | None:
    loss = json.loads(row["answer"]).get("loss") or {}
    return loss.get("total")
