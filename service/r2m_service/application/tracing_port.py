"""Traces: one span a call, and beneath it one for each thing that its time went to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from r2m_service.application.about import Fact
from r2m_service.application.timings import Interval


class CallSpan(Protocol):
    """A call that is being traced, or is not."""

    @property
    def recording(self) -> bool:
        """Whether anybody will see it."""
        ...

    @property
    def ids(self) -> Mapping[str, str]:
        """`trace_id` and `span_id` in hex, for the log; empty where it is not recorded."""
        ...

    def end(
        self, name: str, code: str, facts: Mapping[str, Fact], intervals: Sequence[Interval]
    ) -> None:
        """The call is over. Where this is never called, there was no call worth a span."""
        ...


class Tracing(Protocol):
    """Begins spans. Never fails, and never waits for anybody."""

    def begin(self, carrier: Mapping[str, str], parent: CallSpan | None = None) -> CallSpan:
        """A call begins now.

        Args:
            carrier: its headers or metadata, by lower-case name: `traceparent` may be among them.
            parent: the call that this one is a part of, in place of the carrier's: it is traced
                where that is.
        """
        ...


class _NoSpan:
    recording = False
    ids: Mapping[str, str] = {}

    def end(
        self, name: str, code: str, facts: Mapping[str, Fact], intervals: Sequence[Interval]
    ) -> None:
        """Nothing."""


class NoTracing:
    """Where nobody traces."""

    def begin(self, carrier: Mapping[str, str], parent: CallSpan | None = None) -> CallSpan:
        """A span that nobody sees."""
        return NO_SPAN


NO_SPAN: CallSpan = _NoSpan()
NO_TRACING: Tracing = NoTracing()
