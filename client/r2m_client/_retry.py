"""When to send a request again: decided here for all transports, without I/O or a clock of its own.

Transient failures are retried until the call's timeout: an answer whose code is retryable, a
connection that was refused or broke, and a gateway's 429, 502, 503 or 504. Pauses grow
exponentially up to a cap, with full jitter, so that the workers of a large trainer do not return in
step; what the server asks for (Retry-After, RetryInfo) is added to that. A call whose retries take
long is reported to the log.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from r2m.errors import Code
from r2m_client._errors import (
    ConnectError,
    DeadlineError,
    ProtocolError,
    R2MError,
    ServerError,
    TLSError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("r2m_client")

REFUSED = frozenset({Code.OVERLOADED, Code.NOT_READY, Code.ALIGN_CONFLICT})
"""Answers that say that nothing was done: a call may be repeated whatever it does."""

REPORT_AFTER = 1.0
"""Seconds of retries: before a pause beyond them the log has a warning, if as many are left."""

REPORT_EVERY = 30.0
"""Seconds between two warnings of one call."""

LAST_ATTEMPT = 0.1
"""Seconds that the pause before the last attempt leaves it, or a tenth of a shorter timeout."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a call is retried within its timeout, and with which pauses.

    Attributes:
        retries: at most so many, after the first attempt; 0 turns them off, None leaves the end
            to the call's timeout.
        base: seconds: the first pause is drawn from [0, base), the next from [0, 2·base), ...
        cap: seconds: no drawn pause is longer.
    """

    retries: int | None = None
    base: float = 0.1
    cap: float = 2.0

    def __post_init__(self) -> None:
        if (self.retries or 0) < 0 or not self.base >= 0 or not self.cap >= 0:
            raise ValueError(f"{self}: no value may be negative")


class Attempts:
    """One call's attempts: its deadline, and what each failure means.

    Args:
        retry: how often, with which pauses.
        timeout: seconds for the whole call, pauses included.
        repeatable: doing it twice does no harm, so it may be repeated even where the first
            attempt may have been carried out.
        clock: seconds, monotonic.
        draw: a number in [low, high).
    """

    def __init__(
        self,
        retry: Retry,
        timeout: float,
        *,
        repeatable: bool = True,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._retry = retry
        self._timeout = timeout
        self._repeatable = repeatable
        self._clock = clock
        self._draw = draw
        self._started = clock()
        self._deadline = self._started + timeout
        self._report_at = self._started + REPORT_AFTER
        self._reported = False
        self._last: R2MError | None = None
        self._failures = 0

    def remaining(self) -> float:
        """Seconds left.

        Raises:
            DeadlineError: there are none.
        """
        left = self._deadline - self._clock()
        if left <= 0:
            raise self._final(DeadlineError("the call has no answer"))
        return left

    def pause_after(self, error: R2MError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            R2MError: `error` itself, where there will be no next attempt; it says how often and
                how long the call was tried.
        """
        self._failures += 1
        if isinstance(error, DeadlineError) and not isinstance(error, ServerError):
            raise self._final(error)
        if not self._is_transient(error):
            raise error
        self._last = error
        if self._retry.retries is not None and self._failures > self._retry.retries:
            raise self._final(error)
        left = self._deadline - self._clock()
        asked = 0.0
        if isinstance(error, ServerError | ProtocolError):
            asked = error.retry_after or 0.0
        # The last failure says more than a timeout would, and it is known now.
        if asked >= left:
            error.tried = f"it asks to wait {asked:g} s, the call's timeout is {self._timeout:g} s"
            raise error
        spare = left - asked - min(LAST_ATTEMPT, self._timeout / 10)
        if spare <= 0:
            raise self._final(error)
        # Computed with a bounded exponent: a float overflows after a thousand doublings.
        ceiling = min(self._retry.cap, self._retry.base * 2.0 ** min(self._failures - 1, 64))
        pause = asked + min(self._draw(0.0, ceiling), spare)
        self._report(error, pause, left)
        return pause

    def answered(self) -> None:
        """The call has its answer; the log says so where it had said that the call waits."""
        if self._reported:
            logger.warning("an answer came after %.0f s", self._clock() - self._started)

    def _final(self, error: R2MError) -> R2MError:
        """The error of the call, which says how often and how long it was tried."""
        late = isinstance(error, DeadlineError) and self._last not in (None, error)
        if self._failures > 1 or late:
            tries = "1 try" if self._failures == 1 else f"{self._failures} tries"
            error.tried = f"{tries} in {round(self._clock() - self._started, 1):g} s"
        if late:
            error.tried += f"; the last failure: {self._last}"
        return error

    def _report(self, error: R2MError, pause: float, left: float) -> None:
        if self._clock() + pause < self._report_at or left < REPORT_AFTER:
            return
        self._report_at = self._clock() + REPORT_EVERY
        self._reported = True
        logger.warning("%s (retrying for %.0f s at most)", error, left)

    def _is_transient(self, error: R2MError) -> bool:
        if isinstance(error, ServerError):
            return error.retryable and (self._repeatable or error.code in REFUSED)
        if isinstance(error, TLSError):
            return False
        if isinstance(error, ConnectError):
            return self._repeatable or not error.maybe_sent
        if isinstance(error, ProtocolError):
            # A gateway that limits its callers (429) has not passed the request on.
            return error.passing and (self._repeatable or error.status == 429)
        return False
