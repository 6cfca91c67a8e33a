"""The blocking score stream: samples in, rewards out, in whatever order they get ready."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from r2m_client._errors import DeadlineError, R2MError
from r2m_client._stream_ledger import Ledger, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from r2m_client._results import Score, ScoreResult
    from r2m_client._retry import Attempts
    from r2m_client._samples import Sample

OUTBOX = 4
"""Messages of at most 1 MiB that wait for the connection; then `send` waits."""


class Answers(Protocol):
    """The server's messages; iterating raises an R2MError where the connection breaks."""

    def __iter__(self) -> Iterator[bytes]: ...
    def cancel(self) -> object: ...


class _Link:
    """One connection: the ledger, what waits to be sent, and the thread that receives."""

    def __init__(
        self, wire: Wire, connect: Callable[[Iterator[bytes]], Answers], timeout: float
    ) -> None:
        self.ledger = Ledger(wire, timeout)
        self.moved = threading.Condition()
        self._outbox = deque([wire.opening])
        self._closed = False
        self._answers = connect(self._messages())
        self._thread = threading.Thread(target=self._receive, name="r2m-scores", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the connection and its threads."""
        with self.moved:
            self._closed = True
            self.ledger.fail(R2MError("the stream is closed"))
            self.moved.notify_all()
        self._answers.cancel()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def open(self, timeout: float) -> None:
        """Wait for the server to name the head. Raises R2MError."""
        end = time.monotonic() + timeout
        with self.moved:
            while self.ledger.opened is None:
                if self.ledger.broken is not None:
                    raise self.ledger.broken
                left = end - time.monotonic()
                if left <= 0:
                    raise DeadlineError(f"the stream did not open within {timeout:g} s")
                self.moved.wait(left)

    def put(self, message: bytes) -> None:
        """Queue a message, once there is room. Raises StreamFailed."""
        with self.moved:
            while len(self._outbox) >= OUTBOX:
                self.ledger.check()
                self.wait()
            self.ledger.check()
            self._outbox.append(message)
            self.moved.notify_all()

    def wait(self) -> None:
        """Wait for a change, while the lock is held; a silence that is too long ends the link."""
        self.moved.wait(self.ledger.patience())
        if self.ledger.broken is not None:
            self._answers.cancel()

    def _messages(self) -> Iterator[bytes]:
        # Runs in gRPC's own thread, which asks for a message when the last one is on its way:
        # this is what makes `send` wait for the server.
        while True:
            with self.moved:
                while not self._outbox and not self._closed and not self.ledger.finished:
                    self.moved.wait()
                if self._closed or not self._outbox:
                    return
                message = self._outbox.popleft()
                self.ledger.move()
                self.moved.notify_all()
            yield message

    def _receive(self) -> None:
        try:
            for payload in self._answers:
                with self.moved:
                    self.ledger.take(payload)
                    self.moved.notify_all()
            with self.moved:
                self.ledger.end()
        except R2MError as error:
            with self.moved:
                self.ledger.fail(error)
            self._answers.cancel()
        with self.moved:
            self.moved.notify_all()


class ScoreStream:
    """Rollouts in as they finish generating, rewards out as they are ready, all by one head.

        with client.score_stream(run="tldr") as stream:
            for sample in rollouts:
                stream.send(sample)
            stream.finish()
            for score in stream:
                ...

    Opening is repeated like any call. Nothing is repeated afterwards: where the stream breaks,
    `StreamFailed` lists the samples without an answer, to be sent on another one. The samples are
    kept until they are answered. Leaving the block gives up what is still unanswered.

    Threads may share a stream: one sends, another iterates. The client's timeout bounds the
    opening, and the silence while samples wait for their answers; the stream as a whole may take
    as long as it likes.
    """

    def __init__(
        self,
        wire: Wire,
        connect: Callable[[Iterator[bytes]], Answers],
        *,
        timeout: float,
        attempts: Callable[[], Attempts],
        sleep: Callable[[float], None],
    ) -> None:
        self._wire = wire
        self._connect = connect
        self._timeout = timeout
        self._attempts = attempts
        self._sleep = sleep
        self._sending = threading.Lock()
        self._opened: _Link | None = None

    def __enter__(self) -> ScoreStream:
        if self._opened is not None:
            raise RuntimeError("a score stream is opened once")
        attempts = self._attempts()
        while True:
            left = attempts.remaining()
            link = _Link(self._wire, self._connect, self._timeout)
            try:
                link.open(left)
            except BaseException as error:
                link.close()
                if not isinstance(error, R2MError):
                    raise
                pause = attempts.pause_after(error)
            else:
                attempts.answered()
                self._opened = link
                return self
            self._sleep(pause)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._link.close()

    @property
    def opened(self) -> ScoreResult:
        """Which head answers: run, head, branch, omega, fingerprint; without scores."""
        opened = self._link.ledger.opened
        assert opened is not None
        return opened

    @property
    def pending(self) -> tuple[Sample, ...]:
        """The samples without an answer so far."""
        with self._link.moved:
            return tuple(self._link.ledger.pending.values())

    def send(self, sample: Sample) -> None:
        """Send a sample; waits while the server has no room. From several threads, one by one.

        Raises:
            ValueError: it cannot be sent, its id waits for an answer, or the stream is finished.
            StreamFailed: the stream is over; its `pending` holds this sample if any of it went out.
        """
        link = self._link
        with self._sending:  # a sample's messages stay together: the server prefers it
            with link.moved:
                messages = link.ledger.send(sample)
            for message in messages:
                link.put(message)

    def finish(self) -> None:
        """Say that no more samples come: iterating ends when all are answered."""
        link = self._link
        with self._sending, link.moved:
            link.ledger.finished = True
            link.moved.notify_all()

    def __iter__(self) -> Iterator[Score]:
        return self

    def __next__(self) -> Score:
        """The next answer; waits for it. A sample's error is in its answer.

        Raises:
            StreamFailed: the stream is over and has samples without an answer.
        """
        link = self._link
        with link.moved:
            while (score := link.ledger.fetch()) is None:
                link.wait()
            return score

    @property
    def _link(self) -> _Link:
        if self._opened is None:
            raise RuntimeError("the stream is not open: use it in a with block")
        return self._opened
