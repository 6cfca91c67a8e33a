"""The asyncio score stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from r2m_client._errors import DeadlineError, R2MError
from r2m_client._stream_ledger import Ledger, Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType

    from r2m_client._results import Score, ScoreResult
    from r2m_client._retry import Attempts
    from r2m_client._samples import Sample


class Duplex(Protocol):
    """A call whose sides are open; everything raises an R2MError where the connection breaks."""

    async def write(self, payload: bytes) -> None:
        """Send a message; waits while the server has no room."""
        ...

    async def done(self) -> None:
        """Close the sending side."""
        ...

    async def read(self) -> bytes | None:
        """The server's next message; None at the end."""
        ...

    def cancel(self) -> object:
        """End the call."""
        ...


class _Link:
    """One connection: the ledger, and the task that receives."""

    def __init__(self, wire: Wire, call: Duplex, timeout: float) -> None:
        self.ledger = Ledger(wire, timeout)
        self.call = call
        self._moved = asyncio.Event()
        self._task = asyncio.ensure_future(self._receive())

    async def close(self) -> None:
        """End the connection."""
        self.ledger.fail(R2MError("the stream is closed"))
        self.call.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def open(self, opening: bytes, timeout: float) -> None:
        """Send the first message and wait for the head. Raises R2MError."""
        try:
            async with asyncio.timeout(timeout):
                await self.call.write(opening)
                while self.ledger.opened is None:
                    if self.ledger.broken is not None:
                        raise self.ledger.broken
                    await self._change(None)
        except TimeoutError:
            raise DeadlineError(f"the stream did not open within {timeout:g} s") from None

    async def put(self, message: bytes) -> None:
        """Send a message. Raises StreamFailed."""
        writing = asyncio.ensure_future(self.call.write(message))
        try:
            while not writing.done():
                self.ledger.check()
                await asyncio.wait({writing}, timeout=self.ledger.patience())
            writing.result()
            self.ledger.move()
        except R2MError as error:
            # The receiving side knows best why; it ends by itself when the call has ended.
            self.call.cancel()
            await asyncio.wait({self._task})
            self.ledger.fail(error)
            self.ledger.check()
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def wait(self) -> None:
        """Wait for a change; a silence that is too long ends the link."""
        await self._change(self.ledger.patience())
        if self.ledger.broken is not None:
            self.call.cancel()

    async def _change(self, seconds: float | None) -> None:
        self._moved.clear()
        if seconds is None:
            await self._moved.wait()
        else:
            try:
                async with asyncio.timeout(seconds):
                    await self._moved.wait()
            except TimeoutError:
                self.ledger.patience()

    async def _receive(self) -> None:
        try:
            while (payload := await self.call.read()) is not None:
                self.ledger.take(payload)
                self._moved.set()
            self.ledger.end()
        except R2MError as error:
            self.ledger.fail(error)
            self.call.cancel()
        except asyncio.CancelledError:  # gRPC's way to say that the call was, by a send perhaps
            self.ledger.fail(R2MError("the stream's call was cancelled"))
            raise
        finally:
            self._moved.set()


class AsyncScoreStream:
    """`ScoreStream`, awaited: `async with`, `await stream.send(...)`, `async for`.

    Tasks may share a stream. A send that is cancelled half way ends the stream: half a sample
    cannot be taken back.
    """

    def __init__(
        self,
        wire: Wire,
        connect: Callable[[], Duplex],
        *,
        timeout: float,
        attempts: Callable[[], Attempts],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._wire = wire
        self._connect = connect
        self._timeout = timeout
        self._attempts = attempts
        self._sleep = sleep
        self._sending = asyncio.Lock()
        self._opened: _Link | None = None

    async def __aenter__(self) -> AsyncScoreStream:
        if self._opened is not None:
            raise RuntimeError("a score stream is opened once")
        attempts = self._attempts()
        while True:
            left = attempts.remaining()
            link = _Link(self._wire, self._connect(), self._timeout)
            try:
                await link.open(self._wire.opening, left)
            except BaseException as error:
                await link.close()
                if not isinstance(error, R2MError):
                    raise
                pause = attempts.pause_after(error)
            else:
                attempts.answered()
                self._opened = link
                return self
            await self._sleep(pause)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._link.close()

    @property
    def opened(self) -> ScoreResult:
        """See `ScoreStream.opened`."""
        opened = self._link.ledger.opened
        assert opened is not None
        return opened

    @property
    def pending(self) -> tuple[Sample, ...]:
        """See `ScoreStream.pending`."""
        return tuple(self._link.ledger.pending.values())

    async def send(self, sample: Sample) -> None:
        """See `ScoreStream.send`."""
        link = self._link
        async with self._sending:
            for message in link.ledger.send(sample):
                await link.put(message)

    async def finish(self) -> None:
        """See `ScoreStream.finish`."""
        link = self._link
        async with self._sending:
            link.ledger.finished = True
            if link.ledger.broken is None:
                await link.call.done()

    def __aiter__(self) -> AsyncIterator[Score]:
        return self

    async def __anext__(self) -> Score:
        """See `ScoreStream.__next__`."""
        link = self._link
        while True:
            try:
                score = link.ledger.fetch()
            except StopIteration:
                raise StopAsyncIteration from None
            if score is not None:
                return score
            await link.wait()

    @property
    def _link(self) -> _Link:
        if self._opened is None:
            raise RuntimeError("the stream is not open: use it in an async with block")
        return self._opened
