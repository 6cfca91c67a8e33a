"""Controls at align: shadow arms that learn beside the live head, as turns of the device.

They start as the live head did, take the same groups, labels and settings, and differ in what they
attend to alone. They touch nothing of the live head's, come after it, and move when it moves: their
weights and moments lie in its optimizer file, so that commit, rollback and retention are one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from r2m_service.application.align_job import AlignJob, ControlUpdate
from r2m_service.application.scoring_items import Item
from r2m_service.domain.method import ControlKind
from r2m_service.engine.align_groups import AlignHeads, Group
from r2m_service.engine.control_file import read_asked, read_control, unasked, with_controls
from r2m_service.engine.measuring import Errors, Measuring
from r2m_service.engine.memory import is_out_of_memory
from r2m_service.engine.stepping import adamw_step, loss_by_reward
from r2m_service.modeling.head import Head, Parts, first_head
from r2m_service.modeling.loss import GroupRewards
from r2m_service.modeling.update import AdamWStep, Moments

SPLIT = "the hidden states stay with the trainer: another sample's are not here"
NO_MEMORY = "the device had no memory left for it"


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """A group under a control's weights."""

    group: Group
    rewards: GroupRewards
    c_KP: Tensor | None
    j_KP: Tensor | None


@dataclass(slots=True, eq=False)
class _Arm:
    """One control, and what this align has come to so far.

    Attributes:
        omega: of its rewards: 1 where it attends to nothing, as in a run with feedback none.
    """

    kind: ControlKind
    head: Head
    moments: Moments
    omega: float
    measured: list[_Measured] = field(default_factory=list[_Measured])
    margins: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    optimizer: AdamWStep | None = None
    moved: bool = False
    unavailable: str = ""


class Controls:
    """All controls of a run, at one align.

    Args:
        weight_R, bias: the frozen reward model's scoring head.

    Attributes:
        device_seconds: that the turns took.

    Raises:
        Problem: head_damaged: the optimizer file lacks a control.
    """

    def __init__(
        self,
        job: AlignJob,
        *,
        heads: AlignHeads,
        measuring: Measuring,
        weight_R: Tensor,
        bias: Tensor | None,
        device: torch.device,
    ) -> None:
        self._method = job.method
        self._heads = heads
        self._measuring = measuring
        self._omega = job.parent.key.omega
        self.device_seconds = 0.0
        stored = None if job.optimizer is None else load(job.optimizer)
        self._asked = np.empty(0, np.int64) if stored is None else read_asked(stored)
        self._fresh: Mapping[int, int] = {}
        self._weight_R, self._bias = weight_R, bias
        self._arms: list[_Arm] = []
        for kind in job.method.controls:
            omega = 1.0 if kind == "none" else self._omega
            try:
                head, moments = self._begin(kind, stored, device)
                arm = _Arm(kind, head, moments, omega)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # It stays where it was, off the device.
                head, moments = self._begin(kind, stored, torch.device("cpu"))
                arm = _Arm(kind, head, moments, omega, unavailable=NO_MEMORY)
            self._arms.append(arm)

    def _begin(
        self, kind: ControlKind, stored: Mapping[str, Tensor] | None, device: torch.device
    ) -> tuple[Head, Moments]:
        if stored is not None:
            return read_control(kind, stored, device)
        head = first_head(  # as the live head began
            weight_R=self._weight_R,
            bias=self._bias,
            width_P=_width(kind, self._heads.parent, self._weight_R),
            inner=self._method.width,
            seed=self._method.seed,
            attends=kind != "none",
            metadata={},
        ).to(device)
        return head, Moments.zeros(head)

    def turns(self, used: Sequence[Group]) -> Iterator[Callable[[], bool]]:
        """One group or one tensor of one control at a time.

        Args:
            used: what the live head learnt from.
        """
        # Once for all arms: the live head has learnt from these, whoever could be asked of them.
        self._fresh = unasked([_pair(group) for group in used], self._asked)
        for turn in self._turns(used):
            yield lambda turn=turn: self._timed(turn)

    def _turns(self, used: Sequence[Group]) -> Iterator[Callable[[], None]]:
        for arm in self._arms:
            for place in range(len(used)):
                yield _bounded(arm, lambda arm=arm, place=place: self._measure(arm, used, place))
            yield _bounded(arm, lambda arm=arm: self._differentiate(arm))
            if arm.optimizer is None:
                continue
            for name in arm.optimizer.names:
                yield _bounded(arm, lambda arm=arm, name=name: _move(arm, name))
            yield _bounded(arm, lambda arm=arm: _finish(arm))

    def _timed(self, turn: Callable[[], None]) -> bool:
        started = time.perf_counter()
        try:
            turn()
            return False
        finally:
            self.device_seconds += time.perf_counter() - started

    @torch.no_grad()
    def _measure(self, arm: _Arm, used: Sequence[Group], place: int) -> None:
        """c, j and rewards of one group; what cannot be measured is not learnt from."""
        group, head = used[place], arm.head
        c_KP = j_KP = None
        if head.attends:
            items = self._attended(arm, used, place)
            if items is None:
                return
            errors = Errors()
            pooled = self._measuring.pool(
                head,
                items,
                self._measuring.encoded(items),
                group.rte_KR,
                arm.omega,
                errors,
            )
            if errors:
                return
            c_KP = torch.stack([one.c_P for one in pooled])
            j_KP = torch.stack([one.j_P for one in pooled if one.j_P is not None])
        parts = head.parts(group.rte_KR, c_KP)
        base_K = group.rte_KR @ self._weight_R
        bias = base_K.new_zeros(()) if self._bias is None else self._bias
        rewards = GroupRewards(
            r_K=parts.rewards(arm.omega),
            # Version 0 of every arm is blind: the frozen reward model at this ω.
            reference_K=Parts(torch.zeros_like(base_K), base_K, bias).rewards(arm.omega),
            preferred=group.preferred,
        )
        if not bool(torch.isfinite(rewards.r_K).all()):
            return
        if rewards.has_label:
            arm.measured.append(_Measured(group, rewards, c_KP, j_KP))
        if place in self._fresh:
            assert group.preferred is not None
            winner, loser = group.preferred
            live_K = group.parts.rewards(self._omega)
            arm.margins.append(
                (
                    float(live_K[winner] - live_K[loser]),
                    float(rewards.r_K[winner] - rewards.r_K[loser]),
                )
            )

    def _attended(self, arm: _Arm, used: Sequence[Group], place: int) -> Sequence[Item] | None:
        """Whose states the group's samples get; None, and the arm is out, where there are none."""
        own = used[place].items
        if arm.kind == "backbone":
            return [replace(item, feedback=None, split=None) for item in own]
        # The nearest group before that has none of these texts, as a pair beside its own replay
        # has; where there is none, the samples trade among themselves.
        texts = {item.token_ids for item in own}
        others = (used[place - back].items for back in range(1, len(used)))
        theirs = next(
            (one for one in others if texts.isdisjoint(item.token_ids for item in one)),
            [*own[1:], own[0]],
        )
        items = [theirs[member % len(theirs)] for member in range(len(own))]
        if any(item.split is not None for item in items):
            arm.unavailable = SPLIT
            return None
        return items

    @torch.no_grad()
    def _differentiate(self, arm: _Arm) -> None:
        if not arm.measured:
            return
        arm.optimizer = adamw_step(
            arm.head,
            arm.moments,
            loss_by_reward([one.rewards for one in arm.measured], self._method),
            self._method,
            omega=arm.omega,
            rte_KRs=[one.group.rte_KR for one in arm.measured],
            c_KPs=[one.c_KP for one in arm.measured],
            j_KPs=[one.j_KP for one in arm.measured],
        )

    @property
    def updates(self) -> list[ControlUpdate]:
        """What the turns came to."""
        return [
            ControlUpdate(
                arm.kind,
                margins=[] if arm.unavailable else arm.margins,
                moved=arm.moved,
                unavailable=arm.unavailable,
            )
            for arm in self._arms
        ]

    def beside(self, moments: Moments) -> bytes:
        """The live head's optimizer file with the controls' weights and moments in it."""
        kept = [(arm.kind, arm.head, arm.moments) for arm in self._arms]
        now = np.array([*self._fresh.values()], dtype=np.int64)
        return with_controls(moments, kept, np.union1d(self._asked, now))


def _pair(group: Group) -> int | None:
    """A labelled pair's name: the same whoever of the two is said to be better."""
    if group.preferred is None:
        return None
    sides = sorted(
        np.asarray(group.items[place].token_ids, dtype=np.int32).tobytes()
        for place in group.preferred
    )
    digest = hashlib.blake2b(digest_size=8)
    for side in sides:
        digest.update(len(side).to_bytes(8, "little") + side)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _bounded(arm: _Arm, turn: Callable[[], None]) -> Callable[[], None]:
    """The live head does not pay for a control: where one finds no memory, it is out."""

    def bounded() -> None:
        if arm.unavailable:
            return
        try:
            turn()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            arm.unavailable, arm.optimizer = NO_MEMORY, None
            arm.measured.clear()

    return bounded


def _move(arm: _Arm, name: str) -> None:
    assert arm.optimizer is not None
    arm.optimizer.update(name)


def _finish(arm: _Arm) -> None:
    """Take the step, if it is one: what is not finite leaves the arm where it was."""
    assert arm.optimizer is not None
    step = arm.optimizer.finish()
    arm.optimizer = None
    arm.measured.clear()
    if step.finite:
        arm.head, arm.moments, arm.moved = Head(step.tensors, {}), step.moments, True


def _width(kind: ControlKind, parent: Head, weight_R: Tensor) -> int:
    """D_p of what a control attends to."""
    if kind == "shuffled":
        return parent.tensors["w_k"].shape[0]
    return weight_R.shape[0]
