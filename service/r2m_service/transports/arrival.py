"""How a call arrives: by what name it is known in the log, and which trace it belongs to.

Each transport opens it before anything else is done for a call, in the call's own task.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from r2m_service.application.about import fresh
from r2m_service.application.tracing_port import NO_SPAN, NO_TRACING, CallSpan, Tracing

REQUEST_ID = "x-request-id"
"""Header, and key of gRPC's metadata: of a call, and of its answer."""

TRACE_STATE = "tracestate"
TRACE_KEYS = ("traceparent", TRACE_STATE)
"""W3C Trace Context."""

_GIVEN = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
"""What a log can hold without being led astray; any other id is replaced."""


@dataclass(slots=True)
class Arrival:
    """Of one call.

    Attributes:
        request_id: the client's own, or one of ours.
        carrier: the trace context that it brought.
        span: of the call itself, once it has begun.
    """

    request_id: str
    carrier: Mapping[str, str] = field(default_factory=dict[str, str])
    tracing: Tracing = NO_TRACING
    span: CallSpan = NO_SPAN


_now: ContextVar[Arrival | None] = ContextVar("r2m_arrival", default=None)


def brought(sent: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Of a call's headers, or metadata, those that `arrive` looks at.

    `tracestate` may come in parts, which are one list (W3C). What else comes twice is not believed.

    Args:
        sent: by lower-case name.
    """
    found: dict[str, str] = {}
    for key, value in sent:
        if key not in found:
            found[key] = value
        else:
            found[key] = f"{found[key]},{value}" if key == TRACE_STATE else ""
    return found


def arrive(headers: Mapping[str, str], tracing: Tracing) -> Arrival:
    """A call has come.

    Args:
        headers: those of REQUEST_ID and TRACE_KEYS, by lower-case name; others are not looked at.
    """
    given = headers.get(REQUEST_ID, "")
    found = Arrival(
        request_id=given if _GIVEN.fullmatch(given) else uuid.uuid4().hex,
        carrier={key: headers[key] for key in TRACE_KEYS if key in headers},
        tracing=tracing,
    )
    _now.set(found)
    fresh(request_id=found.request_id)
    return found


def arrived() -> Arrival:
    """The call at hand."""
    return _now.get() or Arrival(uuid.uuid4().hex)
