"""When to send a request again: decided here for all transports, without I/O or a clock of its own.

Repeated are failures that pass: an answer whose code is retryable, a connection that broke, and a
gateway's 429, 502, 503 or 504. Pauses grow exponentially with full jitter, so that the workers of
a large trainer do not return in step; what the server asks for (Retry-After, RetryInfo) is added
to that. The number of repeats and the call's total deadline bound it all.
"""

from __future__ import annotations

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

REFUSED = frozenset({Code.OVERLOADED, Code.NOT_READY, Code.ALIGN_CONFLICT})
"""Answers that say that nothing was done: a call may be repeated whatever it does."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how patiently a call is repeated.

    Attributes:
        retries: how many times at most, after the first attempt; 0 turns it off.
        base: seconds: the first pause is drawn from [0, base), the next from [0, 2·base), ...
        cap: seconds: no drawn pause is longer.
    """

    retries: int = 5
    base: float = 0.1
    cap: float = 10.0

    def __post_init__(self) -> None:
        if self.retries < 0 or not self.base >= 0 or not self.cap >= 0:
            raise ValueError(f"{self}: no value may be negative")


class Attempts:
    """One call's attempts: its deadline, and what each failure means.

    Args:
        retry: how often, how patiently.
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
        self._deadline = clock() + timeout
        self._failures = 0

    def remaining(self) -> float:
        """Seconds left.

        Raises:
            DeadlineError: there are none.
        """
        left = self._deadline - self._clock()
        if left <= 0:
            raise DeadlineError(f"the call's {self._timeout:g} s are over")
        return left

    def pause_after(self, error: R2MError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            R2MError: `error` itself, where there will be no next attempt; a note says why if it
                is one that was worth repeating.
        """
        if not self._passes(error):
            raise error
        self._failures += 1
        if self._failures > self._retry.retries:
            error.add_note(f"gave up after {self._failures} attempts")
            raise error
        # Computed with a bounded exponent: a float overflows after a thousand doublings.
        ceiling = min(self._retry.cap, self._retry.base * 2.0 ** min(self._failures - 1, 64))
        pause = self._draw(0.0, ceiling)
        if isinstance(error, ServerError | ProtocolError):
            pause += error.retry_after or 0.0
        if pause >= self._deadline - self._clock():
            # The last failure says more than a timeout would, and it is known now.
            error.add_note(f"gave up: the next attempt would be past the {self._timeout:g} s")
            raise error
        return pause

    def _passes(self, error: R2MError) -> bool:
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
