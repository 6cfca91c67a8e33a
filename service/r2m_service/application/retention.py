"""Letting go of old heads' files: after every align, beside the answers."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

from r2m.errors import Problem
from r2m_service.application.ports import (
    Blobs,
)
from r2m_service.domain.retention import Keep, Pruned

logger = logging.getLogger("r2m.retention")


class Prunes(Protocol):
    """What the registry does for it."""

    def prune(self, run: str, keep: Keep, at: datetime) -> Pruned:
        """Let go of what the rule no longer asks for, in one transaction.

        Raises:
            Problem: unknown_run, storage_failed.
        """
        ...


class Retention:
    """Applies the rule to runs, one at a time in a thread of its own.

    A run waits at most once: the rule looks at what is there when its turn comes. What fails is
    logged and tried again after the run's next align; files that stay though no row needs them
    are cleared at the next start.
    """

    def __init__(self, registry: Prunes, blobs: Blobs, keep: Keep) -> None:
        self._registry = registry
        self._blobs = blobs
        self._keep = keep
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="r2m-retention")

    def soon(self, run: str) -> None:
        """Apply the rule to a run when the thread is free; returns at once."""
        with self._lock:
            if run in self._waiting:
                return
            self._waiting.add(run)
        with suppress(RuntimeError):  # the server is closing: the next start does it
            self._thread.submit(self._turn, run)

    def settle(self) -> None:
        """Wait until every run that was named so far has had its turn."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Finish the run at hand, drop those that wait."""
        self._thread.shutdown(cancel_futures=True)

    def _turn(self, run: str) -> None:
        with self._lock:
            self._waiting.discard(run)
        try:
            self.prune(run)
        except Problem as problem:
            logger.warning("run %s: old heads stay on disk: %s", run, problem.message)
        except Exception:
            logger.exception("run %s: old heads stay on disk", run)

    def prune(self, run: str) -> Pruned:
        """Apply the rule to a run now. Blocking.

        The rows are committed before a file is removed: a crash in between leaves files that
        nothing needs, never a row whose file is gone.

        Raises:
            Problem: unknown_run, storage_failed.
        """
        pruned = self._registry.prune(run, self._keep, datetime.now(UTC))
        failed: list[Problem] = []
        for key in pruned.keys:
            try:
                self._blobs.delete(key)
            except Problem as problem:
                failed.append(problem)
        if failed:
            raise failed[0]
        if pruned.keys:
            logger.info(
                "run %s: let go of %d heads and %d more optimizer states",
                run,
                len(pruned.heads),
                len(pruned.optimizers),
            )
        return pruned
