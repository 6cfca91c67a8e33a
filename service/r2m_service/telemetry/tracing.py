"""The tracing port on OpenTelemetry: the only place that imports it. Traces go out as OTLP.

A span a call, with what it brought as its parent; beneath it a span for each interval. Names and
numbers alone are in them: no text, no hidden states, no key.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from r2m_service.application.about import Fact
from r2m_service.application.metrics_port import CANCELLED, OK
from r2m_service.application.timings import Interval
from r2m_service.application.tracing_port import NO_SPAN, CallSpan

EXPORT_SECONDS = 5.0
"""For one batch of spans to be taken."""
PATH = "/v1/traces"
PREFIX = "r2m."
_NOT_IN_SPANS = frozenset({"trace_id", "span_id"})


class _Once(logging.Filter):
    """The first warning of a collector that cannot be reached, and one an hour after it."""

    SECONDS = 3600.0

    def __init__(self) -> None:
        super().__init__()
        self._last = -self.SECONDS

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._last < self.SECONDS:
            return False
        self._last = now
        record.exc_info = None
        return True


_once = _Once()


class OtlpTracing:
    """Implements `application.tracing_port.Tracing`. Used from any thread.

    Spans wait in a bounded queue, which a thread of its own sends; what finds no room is dropped.

    Args:
        endpoint: of the collector; its path is /v1/traces unless it names one.
        share: of the calls that are traced, where a client has not decided it.
        fingerprint: of the backbone.
    """

    def __init__(self, endpoint: str, *, share: float = 1.0, fingerprint: str = "") -> None:
        about: dict[str, str] = {SERVICE_VERSION: version("r2m-serve")}
        if "OTEL_SERVICE_NAME" not in os.environ:
            about[SERVICE_NAME] = "r2m-serve"
        if fingerprint:
            about["r2m.fingerprint"] = fingerprint
        for name in ("opentelemetry.exporter.otlp.proto.http", "opentelemetry.sdk"):
            for logger in _loggers(name):
                logger.addFilter(_once)
        self._provider = TracerProvider(
            resource=Resource.create(about),
            sampler=ParentBased(TraceIdRatioBased(share)),
            shutdown_on_exit=False,
        )
        url = endpoint.rstrip("/")
        exporter = OTLPSpanExporter(
            endpoint=url if url.count("/") > 2 else url + PATH, timeout=EXPORT_SECONDS
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("r2m_service")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, carrier: Mapping[str, str], parent: CallSpan | None = None) -> CallSpan:
        """See the port."""
        # A context of our own: nothing that runs in this process has one to inherit.
        context, kind = otel_context.Context(), trace.SpanKind.SERVER
        if parent is not None:
            if not isinstance(parent, _Span):
                return NO_SPAN  # its whole is not traced: by itself it would be a trace of its own
            context, kind = trace.set_span_in_context(parent.span, context), trace.SpanKind.INTERNAL
        elif carrier:
            context = self._propagator.extract(carrier, context)
        span = self._tracer.start_span("call", context, kind=kind)
        return _Span(span, self._tracer) if span.is_recording() else NO_SPAN

    def close(self, seconds: float) -> None:
        """Send what waits, for so long; what has not gone by then is lost."""
        # In a thread, since a collector that does not answer must not hold the server's end up.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(seconds)


class _Span:
    """Implements `CallSpan`."""

    recording = True

    def __init__(self, span: trace.Span, tracer: trace.Tracer) -> None:
        self.span = span
        self._tracer = tracer
        context = span.get_span_context()
        self.ids: Mapping[str, str] = {
            "trace_id": trace.format_trace_id(context.trace_id),
            "span_id": trace.format_span_id(context.span_id),
        }

    def end(
        self, name: str, code: str, facts: Mapping[str, Fact], intervals: Sequence[Interval]
    ) -> None:
        """See the port."""
        now, clock = time.time_ns(), time.perf_counter()
        above = trace.set_span_in_context(self.span, otel_context.Context())
        for one in list(intervals):
            child = self._tracer.start_span(
                one.name,
                above,
                start_time=_at(one.began, clock, now),
                attributes={f"{PREFIX}{key}": value for key, value in one.about.items()},
            )
            child.end(_at(one.ended, clock, now))
        self.span.update_name(name)
        for key, value in facts.items():
            if key not in _NOT_IN_SPANS:
                self.span.set_attribute(f"{PREFIX}{key}", value)
        if code not in (OK, CANCELLED):
            self.span.set_status(trace.StatusCode.ERROR, code)
            self.span.set_attribute("error.type", code)
        self.span.end(now)


def _at(moment: float, clock: float, now: int) -> int:
    """A moment of `time.perf_counter` as nanoseconds of the epoch."""
    return now - round((clock - moment) * 1e9)


def _loggers(prefix: str) -> list[logging.Logger]:
    """Those of a package that are there: a filter counts for the logger it hangs on alone."""
    found = logging.root.manager.loggerDict
    return [logging.getLogger(name) for name in found if name.startswith(prefix)]
