"""The one place where calls of either transport are counted and timed."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from r2m.errors import Code, Problem
from r2m_service.application.about import Fact, about_call
from r2m_service.application.metrics_port import CANCELLED, OK, Called, Metrics, Transport
from r2m_service.application.timings import timed, timed_part
from r2m_service.transports.arrival import arrived

STREAM = "score_stream"
"""It lasts as long as its client likes: its samples are timed instead."""

STREAM_SAMPLE = "stream_sample"

access_log = logging.getLogger("r2m.access")
"""One line a call."""

UNKNOWN = "unknown"
"""Method of a call to no route."""


@dataclass(slots=True)
class Outcome:
    """What comes of the call at hand.

    Attributes:
        method: may be known only when the call is over.
        code: of its answer.
        counts: false for what is no call, such as a probe.
    """

    method: str
    code: str = OK
    counts: bool = True


_now: ContextVar[Outcome | None] = ContextVar("r2m_outcome", default=None)


@contextmanager
def counted(
    metrics: Metrics, transport: Transport, method: str, *, part: bool = False
) -> Generator[Outcome]:
    """A call, from its head to its answer. Its code is that of the Problem that leaves it.

    Here it gets its span, and its line in the log.

    Args:
        part: one sample of a stream: timed by itself.
    """
    outcome, arrival = Outcome(method), arrived()
    token = _now.set(outcome)
    began = time.perf_counter()
    span = arrival.tracing.begin(arrival.carrier, arrival.span if part else None)
    if not part:
        arrival.span = span
    with about_call(**span.ids) as facts, (timed_part if part else timed)() as spent:
        if span.recording and method != STREAM:
            spent.intervals = []
        try:
            yield outcome
        except Problem as problem:
            outcome.code = problem.code.value
            raise
        except asyncio.CancelledError:
            outcome.code = CANCELLED
            raise
        except Exception:
            outcome.code = Code.COMPUTE_FAILED.value  # a bug of ours is never an `ok`
            raise
        finally:
            _now.reset(token)
            seconds = time.perf_counter() - began
            facts |= {"transport": transport, "method": outcome.method, "code": outcome.code}
            if spent.left_out:
                facts["spans_left_out"] = spent.left_out
            if outcome.counts:
                lasting = outcome.method == STREAM
                stages = {} if lasting else dict(spent.seconds)
                metrics.called(
                    Called(
                        transport,
                        outcome.method,
                        outcome.code,
                        None if lasting else seconds,
                        stages,
                    )
                )
                span.end(outcome.method, outcome.code, facts, spent.intervals or [])
            _log(facts, seconds, logging.INFO if outcome.counts and not part else logging.DEBUG)


def _log(facts: Mapping[str, Fact], seconds: float, level: int) -> None:
    if access_log.isEnabledFor(level):
        took = {"milliseconds": round(1000 * seconds, 3)}
        access_log.log(level, "%s %s", facts["method"], facts["code"], extra={"facts": took})


def note(code: str) -> None:
    """The code of the call at hand, where it is answered in place of raised."""
    outcome = _now.get()
    if outcome is not None:
        outcome.code = code


def snake(name: str) -> str:
    """A gRPC method's name as a label."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
