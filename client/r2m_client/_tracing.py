"""A span around each call, and its context in the call's headers, where the process traces.

Nothing is installed or imported for it: a trainer that traces has OpenTelemetry's API loaded
already, and in one that does not no header is added.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

from r2m_client._errors import R2MError, ServerError

Context = dict[str, str]
"""Headers, or gRPC metadata: W3C's `traceparent` and what else the process propagates."""


@contextmanager
def calling(rpc: str, where: str) -> Generator[Context]:
    """One attempt of a call; its context travels with it.

    Args:
        rpc: the method.
        where: the server's address, without credentials.
    """
    if not _traces():
        yield {}
        return
    from opentelemetry import trace

    with trace.get_tracer("r2m_client").start_as_current_span(
        f"r2m {rpc}",
        kind=trace.SpanKind.CLIENT,
        attributes={"rpc.method": rpc, "server.address": where},
        # What an error says may quote a text; its code never does.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield context()
        except R2MError as error:
            code = error.code if isinstance(error, ServerError) else type(error).__name__
            span.set_attribute("error.type", code)
            span.set_status(trace.StatusCode.ERROR, code)
            raise


def context() -> Context:
    """Of the span at hand: for a stream, which begins in one and may end anywhere."""
    found: Context = {}
    if _traces():
        from opentelemetry import propagate

        propagate.inject(found)
    return {key.lower(): value for key, value in found.items()}


def _traces() -> bool:
    return "opentelemetry.trace" in sys.modules
