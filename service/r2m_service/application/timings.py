"""Where a call's time went.

A transport opens `timed` around a call; the engine, further in, adds to what it finds. Nobody in
between has to pass it on.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Stage = Literal["queue", "tokenize", "backbone", "head", "align"]


class Timings:
    """Seconds by stage; a call that comes to a stage again adds to it.

    queue: waiting for the device. tokenize: with the wait for it. backbone, head: of the batches
    that held samples of the call, whole. align: the turns of an update.
    """

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = {}

    def add(self, stage: Stage, seconds: float) -> None:
        """Count time of a stage. The device thread and the event loop never add to the same one."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @property
    def device(self) -> float:
        """Seconds of those stages that run on the device."""
        return sum(self.seconds.get(stage, 0.0) for stage in ("backbone", "head", "align"))

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
    """A call: all that is done within, in whatever task or thread it begins, counts to it."""
    found = Timings()
    token = _now.set(found)
    try:
        yield found
    finally:
        _now.reset(token)
