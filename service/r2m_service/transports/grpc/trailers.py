"""What an answered call says beside its answer: where its time went."""

from __future__ import annotations

from r2m_service.application.timings import Timings
from r2m_service.transports.arrival import REQUEST_ID, arrived
from r2m_service.transports.grpc.errors import Context

KEY = "server-timing"
"""Of the trailing metadata; its value is that of HTTP's Server-Timing header."""


def tell(context: Context, spent: Timings) -> None:
    """Put the call's name and its timings into the trailing metadata."""
    told = [(REQUEST_ID, arrived().request_id)]
    if spent.seconds:
        told.append((KEY, spent.header()))
    context.set_trailing_metadata(tuple(told))
