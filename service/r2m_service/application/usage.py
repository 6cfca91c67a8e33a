"""What each run has used of this process: counters that cost nothing to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from r2m.errors import Problem
from r2m_service.application.contract import UsageOut
from r2m_service.application.engine_port import (
    Item,
    Queried,
    Scored,
)

NUMBER_BYTES = 8
"""Of a number that a trainer tells."""


def bytes_of(item: Item, result: Scored | Queried | Problem | None = None) -> int | None:
    """What a sample's feedback took, both ways; None where the run takes none."""
    if item.feedback is not None:
        return len(item.feedback.data)
    if item.split is None:
        return None
    if isinstance(result, Queried):
        return result.u.nbytes
    return NUMBER_BYTES if item.split.pooled is None else item.split.pooled.nbytes


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
        self,
        run: str,
        items: Sequence[Item | Problem],
        results: Sequence[Scored | Queried | Problem],
    ) -> None:
        """Count a score's samples and what came of them.

        A sample whose trainer is still to answer counts when it has.
        """
        counters = self._runs.setdefault(run, _Counters())
        for item, result in zip(items, results, strict=True):
            if isinstance(item, Item):
                counters.feedback_bytes += bytes_of(item, result) or 0
            if isinstance(result, Queried):
                continue
            counters.samples += 1
            counters.failed += isinstance(result, Problem)
            if isinstance(item, Item):
                counters.tokens += len(item.token_ids)
            if isinstance(result, Scored):
                counters.device_seconds += result.device_seconds

    def aligned(self, run: str, device_seconds: float, feedback_bytes: int) -> None:
        """Count an align that was computed (a retry is not)."""
        counters = self._runs.setdefault(run, _Counters())
        counters.aligns += 1
        counters.device_seconds += device_seconds
        counters.feedback_bytes += feedback_bytes

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
