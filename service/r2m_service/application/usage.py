"""What each run has used of this process: counters that cost nothing to keep."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from r2m.errors import Problem
from r2m_service.application.contract import UsageOut
from r2m_service.application.scoring_items import Item, Queried, Scored
from r2m_service.application.tally import Tally

NO_RUN = ""
"""Stands for the frozen reward model's own rewards, where no run is named."""

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


class Usage:
    """Counters by run, since the process started. Used from the event loop alone.

    Attributes:
        errors: samples that could not be used, by code: of all runs, at score and at align.
    """

    def __init__(self) -> None:
        self._since = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self._runs: dict[str, Tally] = {}
        self.errors = Counter[str]()

    def scored(
        self,
        run: str,
        items: Sequence[Item | Problem],
        results: Sequence[Scored | Queried | Problem],
    ) -> None:
        """Count a score's samples and what came of them.

        A sample whose trainer is still to answer counts when it has.
        """
        counters = self._of(run)
        for item, result in zip(items, results, strict=True):
            if isinstance(item, Item):
                counters.feedback_bytes += bytes_of(item, result) or 0
            if isinstance(result, Queried):
                continue
            counters.samples += 1
            if isinstance(result, Problem):
                counters.failed += 1
                self.errors[result.code.value] += 1
            if isinstance(item, Item):
                counters.tokens += len(item.token_ids)
            if isinstance(result, Scored):
                counters.device_seconds += result.device_seconds
                counters.rewards.add(result.reward, result.vanilla_reward)

    def aligned(self, run: str, device_seconds: float, feedback_bytes: int) -> None:
        """Count an align that was computed (a retry is not)."""
        counters = self._of(run)
        counters.aligns += 1
        counters.device_seconds += device_seconds
        counters.feedback_bytes += feedback_bytes

    def concluded(self, run: str, verdict: str, errors: Iterable[str]) -> None:
        """Count a step that was answered for the first time.

        Args:
            errors: codes of its samples that could not be used.
        """
        self._of(run).verdicts[verdict] += 1
        self.errors.update(errors)

    def labelled(self, run: str, uses: Iterable[str]) -> None:
        """Count outside labels that were taken: `train` or `judge` of each."""
        self._of(run).labels.update(uses)

    def tallies(self) -> Mapping[str, Tally]:
        """All runs' counters as they stand, `NO_RUN` among them."""
        return {name: one.copy() for name, one in self._runs.items()}

    def of(self, run: str) -> UsageOut:
        """A run's counters; zeros for one that was not used."""
        counters = self._runs.get(run, Tally())
        return UsageOut(
            samples=counters.samples,
            failed=counters.failed,
            tokens=counters.tokens,
            feedback_bytes=counters.feedback_bytes,
            device_seconds=round(counters.device_seconds, 6),
            aligns=counters.aligns,
            since=self._since,
        )

    def _of(self, run: str) -> Tally:
        counters = self._runs.setdefault(run, Tally())
        counters.used_at = time.monotonic()
        return counters
