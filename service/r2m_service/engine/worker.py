"""One thread that owns the device.

It takes a batch of scoring work when it is ready for one: no timer, so an idle server adds no
wait and a busy one grows its batches (`queue` says which samples). Longer work (align) comes as a
chain of small turns; between two of them waiting scores go first, and after each batch one turn
goes on, so neither starves.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from r2m.errors import Code, Problem
from r2m_service.engine.queue import WINDOW, BatchQueue, Budgets

logger = logging.getLogger("r2m.engine")

Work = TypeVar("Work")
Result = TypeVar("Result")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Job(Generic[Work]):
    """One sample's work and what it takes: tokens, and bytes of hidden states."""

    work: Work
    tokens: int
    feedback_bytes: int = 0


@dataclass(slots=True, eq=False)
class _Entry(Generic[Work, Result]):
    work: Work
    tokens: int
    feedback_bytes: int
    flow: str
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Result]

    @property
    def gone(self) -> bool:
        """Whether its caller has left, or its deadline has passed, which looks the same here."""
        return self.future.cancelled()


@dataclass(slots=True)
class _Turn:
    function: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class DeviceWorker(Generic[Work, Result]):
    """Runs batches and turns, one at a time, in its own thread.

    Args:
        run_batch: gives one result for each work of a batch. An exception fails that batch only.
        budgets: of a batch.
        window: as of `BatchQueue`.
        fatal: tells whether the device is lost with this error: the worker is not alive then.
    """

    def __init__(
        self,
        run_batch: Callable[[Sequence[Work]], Sequence[Result]],
        *,
        budgets: Budgets,
        window: int = WINDOW,
        fatal: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self._run_batch = run_batch
        self._queue: BatchQueue[_Entry[Work, Result]] = BatchQueue(budgets, window=window)
        self._turns: deque[_Turn] = deque()
        self._wake = threading.Condition()
        self._fatal = fatal
        self._lost = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="r2m-device", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether work can be expected to finish."""
        return self._thread.is_alive() and not self._stopping and not self._lost

    def stop(self) -> None:
        """Finish the batch or turn at hand, fail what waits, end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._fail_waiting(Problem(Code.NOT_READY, "the server is shutting down"))

    async def submit(self, jobs: Sequence[Job[Work]], *, flow: str) -> list[Result | Problem]:
        """Queue samples; a result or its batch's problem for each, in order.

        Args:
            flow: whose they are: flows share the device alike.
        """
        loop = asyncio.get_running_loop()
        entries: list[_Entry[Work, Result]] = [
            _Entry(job.work, job.tokens, job.feedback_bytes, flow, loop, loop.create_future())
            for job in jobs
        ]
        with self._wake:
            self._require_alive()
            self._queue.add(entries)
            self._wake.notify()
        try:
            outcomes = await asyncio.gather(
                *(entry.future for entry in entries), return_exceptions=True
            )
        finally:
            for entry in entries:
                entry.future.cancel()  # whoever waited has gone: the thread drops it
        found: list[Result | Problem] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Problem):
                raise outcome
            found.append(outcome)
        return found

    async def turn(self, function: Callable[[], Value]) -> Value:
        """Run one short function on the device, after at most one batch of scores.

        Raises:
            Problem: as the function raises, or compute_failed.
        """
        loop = asyncio.get_running_loop()
        turn = _Turn(function, loop, loop.create_future())
        with self._wake:
            self._require_alive()
            self._turns.append(turn)
            self._wake.notify()
        return await turn.future

    def _require_alive(self) -> None:
        if not self.alive:
            raise Problem(Code.NOT_READY, "the device worker is not running")

    def _run(self) -> None:
        try:
            self._loop()
        except Exception:
            logger.exception("the device thread died of a bug")
        with self._wake:
            self._lost = not self._stopping
        if self._lost:
            self._fail_waiting(Problem(Code.COMPUTE_FAILED, "the device was lost"))

    def _loop(self) -> None:
        while not self._lost:
            with self._wake:
                while not (self._queue or self._turns or self._stopping):
                    self._wake.wait()
                if self._stopping:
                    return
                batch = self._queue.take()
                turn = None if batch else (self._turns.popleft() if self._turns else None)
            if batch:
                self._do_batch(batch)
                with self._wake:
                    turn = self._turns.popleft() if self._turns and not self._lost else None
            if turn is not None:
                self._do_turn(turn)

    def _do_batch(self, batch: Sequence[_Entry[Work, Result]]) -> None:
        try:
            results = self._run_batch([entry.work for entry in batch])
            pairs = list(zip(batch, results, strict=True))
        except BaseException as error:
            problem = self._failed(error)
            for entry in batch:
                _set(entry.loop, entry.future, error=problem)
            return
        for entry, result in pairs:
            _set(entry.loop, entry.future, result)

    def _do_turn(self, turn: _Turn) -> None:
        if turn.future.cancelled():
            return
        try:
            result = turn.function()
        except BaseException as error:
            _set(turn.loop, turn.future, error=self._failed(error))
        else:
            _set(turn.loop, turn.future, result)

    def _failed(self, error: BaseException) -> Problem:
        """What the callers are told. The worker is lost where nothing can be expected any more."""
        if isinstance(error, Problem):
            return error
        logger.error("the device failed", exc_info=error)
        self._lost = self._lost or not isinstance(error, Exception) or self._fatal(error)
        problem = Problem(
            Code.COMPUTE_FAILED, f"the device failed on this work ({type(error).__name__})"
        )
        problem.__cause__ = error
        return problem

    def _fail_waiting(self, problem: Problem) -> None:
        with self._wake:
            entries, turns = self._queue.clear(), list(self._turns)
            self._turns.clear()
        for one in (*entries, *turns):
            _set(one.loop, one.future, error=problem)


def _set(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Any],
    result: Any = None,
    *,
    error: Exception | None = None,
) -> None:
    def set_it() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    try:
        loop.call_soon_threadsafe(set_it)
    except RuntimeError:
        return  # the loop is closed: nobody waits any more
