"""One sample of a ScoreStream, from its announcement to its answer, and what bounds it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from r2m.errors import Code, Problem
from r2m.tensors import Bytes
from r2m_service.application.contract import SampleIn, ScoreOut
from r2m_service.application.metrics_port import NO_METRICS, Metrics
from r2m_service.application.parsing import excerpt
from r2m_service.application.samples import error_out
from r2m_service.transports.buffers import BufferPool
from r2m_service.transports.grpc.uploads import MAX_CHUNK_BYTES, Tensor
from r2m_service.transports.limits import ByteBudget


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a stream may take.

    Attributes:
        max_bytes: of the tensor of one sample.
        max_samples: of one stream in flight, from announcement to the sending of the answer.
        budget: bytes in flight; samples wait for their share.
        idle_seconds: the longest pause within a sample's bytes, before the first message, and of
            a client that does not read while answers wait.
        buffers: where the tensors' memory is from.
        metrics: hears of each sample.
    """

    max_bytes: int
    max_samples: int
    budget: ByteBudget
    idle_seconds: float
    buffers: BufferPool = field(default_factory=BufferPool)
    metrics: Metrics = NO_METRICS


class ReadingClock:
    """Time that stands still while the server itself does not read.

    A client cannot be late with bytes that nobody takes from it.
    """

    def __init__(self) -> None:
        self._time = asyncio.get_running_loop().time
        self._lost = 0.0
        self._since: float | None = None

    def now(self) -> float:
        """Seconds of reading, from some moment on."""
        return (self._time() if self._since is None else self._since) - self._lost

    @contextmanager
    def stopped(self) -> Generator[None]:
        """Nothing is read within."""
        self._since = self._time()
        try:
            yield
        finally:
            self._lost += self._time() - self._since
            self._since = None


class SampleUpload:
    """A sample and its bytes, as far as they came.

    Args:
        sample: as announced; its feedback has dtype and shape but no data.
        message_bytes: of the announcement.
        clock: by which a pause is too long.
        buffers: where the tensor's memory is from.

    Attributes:
        admitted: its bytes are reserved: chunks may be taken.
        problem: why it was given up, once it was.
        task: runs it.
    """

    def __init__(
        self, sample: SampleIn, message_bytes: int, clock: ReadingClock, buffers: BufferPool
    ) -> None:
        self.sample = sample
        self.message_bytes = message_bytes
        self.admitted = False
        self.problem: Problem | None = None
        self.task: asyncio.Task[None] | None = None
        self._clock = clock
        self._tensor = None if sample.feedback is None else Tensor(sample.feedback, buffers)
        self._begun = False
        self._touched = 0.0
        self._arrived = asyncio.Event()
        self._look()

    @property
    def stated(self) -> int:
        """Bytes of hidden states that are to come."""
        return 0 if self._tensor is None else self._tensor.size or 0

    @property
    def arriving(self) -> bool:
        """It holds its reservation, and only more reading brings it further."""
        return self.admitted and not self._arrived.is_set() and self.problem is None

    def begin(self) -> None:
        """Its task runs. Raises the Problem that it was given up with before that."""
        self._begun = True
        if self.problem is not None:
            raise self.problem

    def admit(self) -> None:
        """Its bytes are reserved: from now on the client is expected to send them."""
        self.admitted = True
        self._touched = self._clock.now()

    def fault(self, data: Bytes) -> Problem | None:
        """What is wrong with a chunk, if anything is."""
        if len(data) > MAX_CHUNK_BYTES:
            return Problem(
                Code.INVALID_REQUEST,
                f"a chunk may have {MAX_CHUNK_BYTES} bytes, got {len(data)}",
                field="feedback.data",
            )
        if self._tensor is None:
            return surplus(self.sample.id, 0) if data else None
        # A dtype or shape that says no size is an error that the use case words better.
        size, filled = self._tensor.size, self._tensor.filled
        if size is not None and filled + len(data) > size:
            return surplus(self.sample.id, size)
        return None

    def add(self, data: Bytes) -> None:
        """Take a chunk that has no fault."""
        if self._tensor is not None:
            self._tensor.add(self.sample.id, data)
        self._touched = self._clock.now()
        self._look()

    def end(self) -> None:
        """No more bytes will come."""
        self._arrived.set()

    async def arrive(self, idle_seconds: float) -> SampleIn:
        """The sample with all bytes that came, once they are as many as stated or the last.

        Raises:
            Problem: deadline_exceeded, where the client pauses longer than `idle_seconds`.
        """
        while not self._arrived.is_set():
            left = self._touched + idle_seconds - self._clock.now()
            if left <= 0:
                raise Problem(
                    Code.DEADLINE_EXCEEDED,
                    f"no byte of the sample came for {idle_seconds:g} seconds",
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrived.wait()
        if self._tensor is not None:
            self._tensor.finish()
        return self.sample

    def give_up(self, problem: Problem) -> None:
        """Answer it with this error; what its task does now is of no use any more."""
        if self.problem is None:
            self.problem = problem
            # A task that has not begun would be gone without a word.
            if self.task is not None and self._begun:
                self.task.cancel()

    def failed(self, problem: Problem) -> ScoreOut:
        """Its answer when it has no reward."""
        return ScoreOut(
            id=self.sample.id, error=error_out(problem), finish_reason=self.sample.finish_reason
        )

    def _look(self) -> None:
        if self._tensor is None or self._tensor.filled >= self.stated:
            self._arrived.set()


def surplus(name: str, stated: int) -> Problem:
    """More bytes came than the sample's dtype and shape take."""
    return Problem(
        Code.FEEDBACK_SIZE,
        f"more bytes came for sample {excerpt(name)} than it announced, {stated}",
        field="feedback.data",
    )


def late(name: str) -> Problem:
    """More bytes came than announced, after the sample was scored by those."""
    return Problem(
        Code.FEEDBACK_SIZE,
        f"more bytes came for sample {excerpt(name)} than it announced, after it was scored: do "
        "not use its reward",
        field="feedback.data",
    )
