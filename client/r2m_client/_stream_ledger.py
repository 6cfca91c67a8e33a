"""What the blocking and the asyncio score stream share: who has an answer, and who has not."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from r2m_client._errors import DeadlineError, ProtocolError, R2MError, StreamFailed
from r2m_client._results import Score, ScoreResult

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r2m_client._samples import Sample


class Wire(Protocol):
    """What a stream's messages look like."""

    @property
    def opening(self) -> bytes:
        """The first message."""
        ...

    def sample(self, sample: Sample) -> Iterator[bytes]:
        """Its announcement and its chunks; ValueError, before the first, for what has no form."""
        ...

    def read(self, payload: bytes) -> ScoreResult | Score | None:
        """The head, an answer, or None for a newer server's message. Raises ProtocolError."""
        ...


class Ledger:
    """A stream's account. It does no I/O and knows no locks.

    Args:
        wire: what the messages look like.
        timeout: seconds of silence that are too many while samples wait.

    Attributes:
        opened: the head, once the server named it; without scores.
        pending: samples without an answer, by id.
        scores: answers that the caller has not fetched.
        finished: the caller has said that no more samples come.
        ended: the server closed the stream, all in order.
        broken: why it is over otherwise.
    """

    def __init__(self, wire: Wire, timeout: float) -> None:
        self._wire = wire
        self._timeout = timeout
        self._moved = time.monotonic()
        self.opened: ScoreResult | None = None
        self.pending: dict[str, Sample] = {}
        self.scores: deque[Score] = deque()
        self.finished = False
        self.ended = False
        self.broken: R2MError | None = None

    def send(self, sample: Sample) -> Iterator[bytes]:
        """Take note of a sample; returns the messages to send for it.

        Raises:
            ValueError: it cannot be sent, its id waits for an answer, or the stream is finished.
            StreamFailed: the stream is over.
        """
        if self.finished:
            raise ValueError("the stream is finished: no sample can follow")
        if sample.id in self.pending:
            raise ValueError(f"sample {sample.id!r} is on the stream already, without an answer")
        self.check()
        messages = self._wire.sample(sample)
        if not self.pending:
            self.move()
        self.pending[sample.id] = sample
        return messages

    def take(self, payload: bytes) -> None:
        """Take note of a message of the server.

        Raises:
            ProtocolError: it is none, or out of place.
        """
        found = self._wire.read(payload)
        self.move()
        if isinstance(found, ScoreResult):
            self.opened = found
        elif isinstance(found, Score):
            if self.pending.pop(found.id, None) is None:
                raise ProtocolError(f"an answer came for {found.id!r}, which waits for none")
            self.scores.append(found)

    def end(self) -> None:
        """The server closed the stream without an error."""
        if self.finished and not self.pending and self.opened is not None:
            self.ended = True
        else:
            self.fail(ProtocolError("the server closed the stream before it had answered all"))

    def fail(self, error: R2MError) -> None:
        """The stream is over; the first reason counts."""
        if self.broken is None and not self.ended:
            self.broken = error

    def move(self) -> None:
        """Something went in or came out."""
        self._moved = time.monotonic()

    def patience(self) -> float | None:
        """Seconds until the silence is too long; None: nobody waits for anything.

        A stream on which all samples have their answers may be silent as long as it likes: the
        next rollout may take a while.
        """
        if not self.pending:
            return None
        left = self._moved + self._timeout - time.monotonic()
        if left <= 0:
            self.fail(DeadlineError(f"nothing moved on the stream for {self._timeout:g} s"))
        return max(left, 0.0)

    def check(self) -> None:
        """Raise StreamFailed if the stream is over before its end."""
        if self.broken is not None:
            raise StreamFailed(
                f"{self.broken}; {len(self.pending)} samples of the stream have no answer",
                pending=tuple(self.pending.values()),
            ) from self.broken

    def fetch(self) -> Score | None:
        """The next answer, or None where there is none yet.

        Raises:
            StreamFailed: there will be none; answers that had come are fetched first.
            StopIteration: all are fetched.
        """
        if self.scores:
            return self.scores.popleft()
        self.check()
        if self.ended:
            raise StopIteration
        return None
