"""Scores in the background of a blocking client."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future

    from r2m_client._results import ScoreResult
    from r2m_client._samples import Sample
    from r2m_client._split_talk import Feedback

AT_ONCE = 8
"""Calls under way; further ones wait here, so that a server sees a bounded number."""


_starting = threading.Lock()  # held for microseconds: one for all clients is enough


class ScoreFutures:
    """Mixed into Client."""

    _background: ThreadPoolExecutor | None = None

    def score(
        self,
        samples: Iterable[Sample],
        *,
        run: str | None = None,
        head: int | str = "live",
        step: int | None = None,
        branch: str | None = None,
        feedback: Feedback = "streamed",
    ) -> ScoreResult:
        """Client's own."""
        raise NotImplementedError

    def score_async(
        self,
        samples: Iterable[Sample],
        *,
        run: str | None = None,
        head: int | str = "live",
        step: int | None = None,
        branch: str | None = None,
        feedback: Feedback = "streamed",
    ) -> Future[ScoreResult]:
        """`score` in the background: rollouts are scored while others still generate.

            futures.append(client.score_async(group, run="tldr", step=7, feedback="split"))
            ...
            results = [future.result() for future in futures]

        Name the `step`: then all calls of a step are answered by one head, whatever happens to the
        run meanwhile. Split states are read in the background; `Context.joined` makes one context
        of several results. At most 8 calls are under way, and `close` waits for those.

        Args:
            samples: iterated at once.
            run, head, step, branch, feedback: as in `score`.

        Returns:
            A future of what `score` returns or raises; `cancel` helps while it has not begun.
        """
        given = list(samples)
        with _starting:
            if self._background is None:
                self._background = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="r2m-score")
            return self._background.submit(
                self.score, given, run=run, head=head, step=step, branch=branch, feedback=feedback
            )

    def _end_background(self) -> None:
        """Wait for what has begun; the rest is cancelled."""
        with _starting:
            if self._background is not None:
                self._background.shutdown(cancel_futures=True)
                self._background = None
