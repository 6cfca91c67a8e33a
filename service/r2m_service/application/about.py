"""What is known of the call at hand, for its lines in the log and its span.

A transport begins it; whoever finds something out, further in, tells it.
Never a text, hidden states or a key: names, numbers and codes alone.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from r2m_service.domain.access import Key

Fact = str | int | float | bool

content = logging.getLogger("r2m.content")
"""Texts of samples. Off but where an operator asked for it (`--log-content`)."""
content.setLevel(logging.CRITICAL)

_now: ContextVar[dict[str, Fact] | None] = ContextVar("r2m_about", default=None)

caller: ContextVar[Key | None] = ContextVar("r2m_caller", default=None)
"""Key that the call was made with; None on a server without keys."""

LONGEST = 256
"""Characters of a fact. Some are told before anybody has looked at them, and spans are held."""


def caller_name() -> str | None:
    """Name of the caller's key, for the audit trail; None on a server without keys."""
    key = caller.get()
    return None if key is None else key.name


def tell(**facts: Fact | None) -> None:
    """Add to what is known of the call at hand; None is nothing known."""
    known = _now.get()
    if known is not None:
        for name, fact in facts.items():
            if fact is not None:
                known[name] = fact[:LONGEST] if isinstance(fact, str) else fact


def known() -> Mapping[str, Fact]:
    """What has been told of the call at hand; nothing outside of one."""
    return _now.get() or {}


def fresh(**facts: Fact) -> None:
    """A call has come, in a task of its own: nothing but these is known of it."""
    _now.set(dict(facts))


@contextmanager
def about_call(**facts: Fact | None) -> Generator[dict[str, Fact]]:
    """A call; one within another begins with what is known of that, and keeps its own to itself."""
    found = dict(_now.get() or {})
    token = _now.set(found)
    tell(**facts)
    try:
        yield found
    finally:
        _now.reset(token)
