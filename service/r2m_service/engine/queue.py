"""Which of the waiting samples make the next batch. Knows neither threads nor torch.

Three rules, in this order:

1. Fair between flows (a flow is a run). They take turns: each batch is led by the oldest sample of
   the flow whose turn it is. So a run that sends one sample waits for the batch at hand and at most
   one batch of every other run, however much those have sent.
2. Of like length. Where not all that waits fits into a batch, the leader is joined by those of a
   window of samples that are nearest to it in length, since padding is work thrown away. Nobody
   starves: the leader is never passed over, so a sample waits for no more batches of its flow than
   there were samples before it.
3. Within the budgets, always.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeVar

WINDOW = 256
"""Samples that are looked at for like length."""


class Waiting(Protocol):
    """What can wait here."""

    @property
    def flow(self) -> str:
        """Whose it is: flows share the device alike."""
        ...

    @property
    def tokens(self) -> int:
        """Of its text."""
        ...

    @property
    def feedback_bytes(self) -> int:
        """Of its hidden states."""
        ...

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more."""
        ...


@dataclass(frozen=True, slots=True)
class Budgets:
    """What a batch may have; a sample that is larger by itself goes alone.

    Attributes:
        tokens: padded ones: the longest text times the count.
        items: samples.
        feedback_bytes: of hidden states.
    """

    tokens: int
    items: int
    feedback_bytes: int

    def allow(self, *, count: int, longest: int, feedback_bytes: int) -> bool:
        """Whether a batch of more than one sample may be like this."""
        return (
            count <= self.items
            and count * longest <= self.tokens
            and feedback_bytes <= self.feedback_bytes
        )


W = TypeVar("W", bound=Waiting)


class BatchQueue(Generic[W]):
    """Waiting samples by flow. Used under its owner's lock.

    Args:
        budgets: of a batch.
        window: samples looked at for like length; 1: batches are in fair order alone.
    """

    def __init__(self, budgets: Budgets, *, window: int = WINDOW) -> None:
        self._budgets = budgets
        self._window = max(1, window)
        self._flows: OrderedDict[str, deque[W]] = OrderedDict()  # the next to lead is first

    def __len__(self) -> int:
        return sum(len(flow) for flow in self._flows.values())

    def add(self, entries: Iterable[W]) -> None:
        """Put samples behind those of their flows."""
        for entry in entries:
            self._flows.setdefault(entry.flow, deque()).append(entry)

    def clear(self) -> list[W]:
        """Take all that waits."""
        entries = [entry for flow in self._flows.values() for entry in flow]
        self._flows.clear()
        return entries

    def take(self) -> list[W]:
        """The next batch, the leader first; empty where nobody waits. Those gone are dropped."""
        window = self._fair(max(self._window, self._budgets.items))
        if not window:
            return []
        batch = self._within_budgets(window)
        if len(batch) < len(window) and self._window > 1:
            batch = self._alike(window[: self._window])
        self._remove(batch)
        return batch

    def _fair(self, most: int) -> list[W]:
        """Up to `most` samples, one of each flow in turn."""
        for name, flow in list(self._flows.items()):
            while flow and flow[0].gone:
                flow.popleft()
            if not flow:
                del self._flows[name]
        found: list[W] = []
        lines = [islice(flow, most) for flow in self._flows.values()]
        while lines and len(found) < most:
            going: list[islice[W]] = []
            for line in lines:
                entry = next((one for one in line if not one.gone), None)
                if entry is not None:
                    found.append(entry)
                    going.append(line)
            lines = going
        return found[:most]

    def _within_budgets(self, entries: Sequence[W]) -> list[W]:
        """The first of them, as many as fit."""
        longest = held = 0
        for count, entry in enumerate(entries):
            longest, held = max(longest, entry.tokens), held + entry.feedback_bytes
            if count and not self._budgets.allow(
                count=count + 1, longest=longest, feedback_bytes=held
            ):
                return list(entries[:count])
        return list(entries)

    def _alike(self, window: Sequence[W]) -> list[W]:
        """The leader with those around it by length: at each step the one that pads less."""
        leader = window[0]
        ranked = sorted(window, key=lambda one: one.tokens)
        place = next(at for at, one in enumerate(ranked) if one is leader)
        shorter, longer = ranked[:place], deque(ranked[place + 1 :])
        batch, longest, held = [leader], leader.tokens, leader.feedback_bytes
        while shorter or longer:
            down = longest - shorter[-1].tokens if shorter else None
            up = (longer[0].tokens - longest) * len(batch) if longer else None
            take_longer = down is None or (up is not None and up <= down)
            entry = longer.popleft() if take_longer else shorter.pop()
            if self._budgets.allow(
                count=len(batch) + 1,
                longest=max(longest, entry.tokens),
                feedback_bytes=held + entry.feedback_bytes,
            ):
                batch.append(entry)
                longest, held = max(longest, entry.tokens), held + entry.feedback_bytes
            elif take_longer:
                longer.clear()  # what follows is longer still
            else:
                break
        return batch

    def _remove(self, batch: Sequence[W]) -> None:
        """Take a batch out of its flows, and let the next flow lead."""
        taken = {id(entry) for entry in batch}
        for name, count in Counter(entry.flow for entry in batch).items():
            flow, passed = self._flows[name], list[W]()
            while count:
                entry = flow.popleft()
                if id(entry) in taken:
                    count -= 1
                else:
                    passed.append(entry)
            flow.extendleft(reversed(passed))
        self._flows.move_to_end(batch[0].flow)
