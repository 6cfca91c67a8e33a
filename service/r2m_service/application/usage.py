"""What each run has used of this process: counters that cost nothing to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from r2m.errors import Problem
from r2m_service.application.contract import UsageOut
from r2m_service.application.ports import Item, Scored


@dataclass(slots=True)
class _Counters:
    samples: int = 0
    failed: int = 0
    tokens: int = 0
    feedback_bytes: int = 0
    device_seconds: float = 0.0
    aligns: int = 0


class Usage:
    """Counters by run, since the process started. Used from the event loop alone."""

    def __init__(self) -> None:
        self._since = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self._runs: dict[str, _Counters] = {}

    def scored(
        self, run: str, items: Sequence[Item | Problem], results: Sequence[Scored | Problem]
    ) -> None:
        """Count a score's samples and what came of them."""
        counters = self._runs.setdefault(run, _Counters())
        for item, result in zip(items, results, strict=True):
            counters.samples += 1
            counters.failed += isinstance(result, Problem)
            if isinstance(item, Item):
                counters.tokens += len(item.token_ids)
                counters.feedback_bytes += len(item.feedback.data) if item.feedback else 0
            if isinstance(result, Scored):
                counters.device_seconds += result.device_seconds

    def aligned(self, run: str, device_seconds: float) -> None:
        """Count an align that was computed (a retry is not)."""
        counters = self._runs.setdefault(run, _Counters())
        counters.aligns += 1
        counters.device_seconds += device_seconds

    def of(self, run: str) -> UsageOut:
        """A run's counters; zeros for one that was not used."""
        counters = self._runs.get(run, _Counters())
        return UsageOut(
            samples=counters.samples,
            failed=counters.failed,
            tokens=counters.tokens,
            feedback_bytes=counters.feedback_bytes,
            device_seconds=round(counters.device_seconds, 6),
            aligns=counters.aligns,
            since=self._since,
        )
