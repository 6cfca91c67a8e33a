"""Where a call's time went.

A transport opens `timed` around a call; the engine, further in, adds to what it finds. Nobody in
between has to pass it on.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["queue", "tokenize", "backbone", "head", "align"]
DEVICE: tuple[Stage, ...] = ("backbone", "head", "align")
"""Stages that run on the device."""


MOST_INTERVALS = 256
"""Of a call. One may have ten thousand batches, and its spans are made on the event loop."""


@dataclass(frozen=True, slots=True)
class Interval:
    """When something was done for a call, for its trace.

    Attributes:
        began, ended: by `time.perf_counter`.
        about: numbers and names that say more.
    """

    name: str
    began: float
    ended: float
    about: Mapping[str, str | int | float | bool] = field(
        default_factory=dict[str, str | int | float | bool]
    )


class Timings:
    """Seconds by stage; a call that comes to a stage again adds to it.

    queue: waiting for the device. tokenize: with the wait for it. backbone, head: of the batches
    that held samples of the call, whole. align: the turns of an update.

    Args:
        whole: the call that these are a part of. What is not the device's counts there too; a
            batch, which may hold several parts of one call, is counted once for it by the device.

    Attributes:
        intervals: what a trace shows; None: nobody traces the call.
        left_out: how many there were beyond MOST_INTERVALS.
        waiting_since: when the call last began to wait for the device.
    """

    def __init__(self, whole: Timings | None = None) -> None:
        self.whole = whole
        self.seconds: dict[Stage, float] = {}
        self.intervals: list[Interval] | None = None
        self.left_out = 0
        self.waiting_since = 0.0
        self._joined: tuple[Timings, ...] = ()

    def go_on_in(self, call: Timings) -> None:
        """From now on the work is done for another call too, which waits for what this one began.

        It may be an align's reply, or a retry: the call that began it is over.
        """
        if call is not self:
            self._joined = (*self._joined, call)  # a new one: the device thread may be reading it

    def add(self, stage: Stage, seconds: float) -> None:
        """Count time of a stage. The device thread and the event loop never add to the same one."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        if self.whole is not None and stage not in DEVICE:
            self.whole.add(stage, seconds)
        for call in self._joined:
            call.add(stage, seconds)

    def took(
        self, name: str, began: float, ended: float, **about: str | int | float | bool
    ) -> None:
        """Note for the trace when something was done; nothing where nobody traces."""
        for call in self._joined:
            call.took(name, began, ended, **about)
        if self.intervals is None:
            return
        if len(self.intervals) < MOST_INTERVALS:
            self.intervals.append(Interval(name, began, ended, about))
        else:
            self.left_out += 1

    @contextmanager
    def taking(self, name: str, **about: str | int | float | bool) -> Generator[None]:
        """Note for the trace what is done within."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.took(name, began, time.perf_counter(), **about)

    @property
    def device(self) -> float:
        """Seconds of those stages that run on the device."""
        return sum(self.seconds.get(stage, 0.0) for stage in DEVICE)

    def header(self) -> str:
        """As the value of a Server-Timing header (W3C): milliseconds."""
        return ", ".join(
            f"{stage};dur={1000 * spent:.3f}" for stage, spent in list(self.seconds.items())
        )


_now: ContextVar[Timings | None] = ContextVar("r2m_timings", default=None)


def timings() -> Timings:
    """Those of the call at hand; some that nobody reads where there is none."""
    return _now.get() or Timings()


@contextmanager
def timed() -> Generator[Timings]:
    """A call: all that is done within, in whatever task or thread it begins, counts to it.

    Within another one it is the same call.
    """
    with _open(_now.get() or Timings()) as found:
        yield found


@contextmanager
def timed_part() -> Generator[Timings]:
    """A part of the call at hand that is timed by itself: a sample of a stream."""
    with _open(Timings(_now.get())) as found:
        yield found


@contextmanager
def _open(found: Timings) -> Generator[Timings]:
    token = _now.set(found)
    try:
        yield found
    finally:
        _now.reset(token)
