"""Where a call's time on the device went: work, and waiting for it."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from r2m_service.application.timings import Timings


@contextmanager
def phase(spent: Timings, name: str, **about: int) -> Generator[None]:
    """Many short turns on the device, with what they waited for it in between."""
    began, waited, worked = time.perf_counter(), spent.seconds.get("queue", 0.0), spent.device
    try:
        yield
    finally:
        spent.took(
            name,
            began,
            time.perf_counter(),
            **about,
            queue_seconds=spent.seconds.get("queue", 0.0) - waited,
            device_seconds=spent.device - worked,
        )


@contextmanager
def queueing(spent: Timings) -> Generator[None]:
    """What goes by within and is not the device's work is waiting for the device."""
    began, worked = time.perf_counter(), spent.device
    spent.waiting_since = began
    try:
        yield
    finally:
        waited = time.perf_counter() - began - (spent.device - worked)
        spent.add("queue", max(0.0, waited))
