"""An open ScoreStream: reading, scoring and writing at once, within bounds.

Every sample is a task of its own: it reserves its bytes, waits for its chunks, is scored, and its
answer is queued. One reader hands chunks to the samples, one writer sends the answers. Whatever is
wrong with a sample is its own answer. The stream ends early only where nobody could tell what
its messages mean: no `open` first, a sample without a usable id, two samples of one id in flight,
a chunk of a sample that was never announced (or answered long ago).

Flow control, and why it cannot deadlock. A sample reserves all its bytes before the first of them
is taken, in the order of announcement. Samples without room stand in line, and reading goes on,
since the chunks that come next may complete a sample that has its bytes reserved. Reading stops
only at a message that cannot be taken: a chunk of a sample in line, or an announcement beyond the
bounds. There are two cases then.

- No sample of this stream is half uploaded. Then nothing that this stream holds waits for its
  reader: whole samples are scored and let go of their bytes whatever the client does. So it waits
  without holding what others need, and no circle can close. This is the usual case, and the only
  one for clients that send a sample's chunks right behind its announcement.
- Some are. Their rest is behind the message at hand, so the wait may be for themselves, or for
  another stream that waits likewise. No order of reservations helps: these bytes can be neither
  kept (the bound) nor skipped. The wait is cut short, and the sample at hand is `overloaded`, which
  is retryable.

The bytes of a sample are free again when it is scored, not when its answer is read. Unread answers
count among the samples in flight; a client that reads none for too long loses its stream.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import grpc.aio

from r2m.errors import Code, Problem
from r2m.tensors import Bytes
from r2m.v1 import r2m_pb2 as pb
from r2m_service.application.about import tell
from r2m_service.application.contract import SampleIn, ScoreOut
from r2m_service.application.parsing import excerpt, parse
from r2m_service.application.samples import error_out
from r2m_service.transports.counting import STREAM_SAMPLE, counted, note
from r2m_service.transports.failures import only_problems
from r2m_service.transports.grpc.chunks import chunk_of
from r2m_service.transports.grpc.errors import Context
from r2m_service.transports.grpc.messages import decode, to_bytes, to_value
from r2m_service.transports.grpc.score_uploads import Bounds, ReadingClock, SampleUpload, late
from r2m_service.transports.grpc.streams import drain
from r2m_service.transports.interface import Application, Scoring
from r2m_service.transports.limits import READY_SECONDS

HALT_SECONDS = 1.0
"""How long reading may stop while samples of the same stream are half uploaded."""

LINE_BYTES = 1 << 20
"""Announcements in line for room have been read without a reservation: this much of them."""

REMEMBERED = 4096
"""Samples answered lately, whose late chunks are no error of the stream."""

MAX_ID = 256
_CHUNK = pb.ScoreStreamRequest.DESCRIPTOR.fields_by_name["chunk"].number


class OpenStream:
    """One stream after its `opened`.

    Args:
        application: asked whether the server still takes work.
        scoring: gives the answers.
        bounds: what the stream may take.
        context: the call.
    """

    def __init__(
        self, application: Application, scoring: Scoring, bounds: Bounds, context: Context
    ) -> None:
        self._application = application
        self._bounds = bounds
        self._scoring = scoring
        self._context = context
        self._clock = ReadingClock()
        self._uploads: dict[str, SampleUpload] = {}
        self._line_bytes = 0  # of announcements whose samples are not admitted yet
        self._answered: OrderedDict[str, bool] = OrderedDict()  # whether with a reward
        self._answers: asyncio.Queue[ScoreOut | None] = asyncio.Queue()
        self._unsent = 0
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Read, score and write until the client has ended its side and has all answers."""
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        try:
            waiting = {reader, writer}
            while waiting:
                done, waiting = await asyncio.wait(
                    {reader, writer}, timeout=READY_SECONDS, return_when=asyncio.FIRST_EXCEPTION
                )
                for one in done:
                    one.result()
                if waiting and self._in_flight == 0:  # otherwise it would hold up a shutdown
                    self._application.require_ready()
        finally:
            refused = reader.done() and not reader.cancelled() and reader.exception() is not None
            tasks = [reader, writer, *self._tasks()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if refused:
                await drain(self._context)

    @property
    def _in_flight(self) -> int:
        return len(self._uploads) + self._unsent

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [one.task for one in self._uploads.values() if one.task is not None]

    # ------------------------------------------------------------ reading

    async def _read(self) -> None:
        while (raw := cast("Any", await self._context.read())) is not grpc.aio.EOF:
            chunk = chunk_of(raw, _CHUNK)
            if chunk is not None:
                await self._take(*chunk)
                continue
            message = decode(pb.ScoreStreamRequest, raw)
            part = message.WhichOneof("part")
            if part == "sample":
                await self._announce(message.sample, len(raw))
            elif part == "chunk":
                await self._take(message.chunk.id, message.chunk.data)
            else:
                raise Problem(
                    Code.INVALID_REQUEST,
                    "after `open` come samples and chunks only",
                    field="open" if part == "open" else None,
                )
        for upload in self._uploads.values():
            upload.end()
        await asyncio.gather(*self._tasks())
        self._answers.put_nowait(None)

    async def _announce(self, message: pb.Sample, size: int) -> None:
        name = message.id
        if not 0 < len(name) <= MAX_ID:  # nobody could tell whose an answer to it is
            raise Problem(
                Code.INVALID_REQUEST, f"a sample's id has 1 to {MAX_ID} characters", field="id"
            )
        if name in self._uploads:
            raise Problem(
                Code.DUPLICATE_ID,
                f"sample {excerpt(name)} is in flight: an id is free again when it is answered",
                field="id",
            )
        try:
            if not await self._room(lambda: self._can_announce(size)):
                raise _overloaded(f"{self._bounds.max_samples} samples in flight or no room")
            upload = self._upload(message, size)
        except Problem as problem:
            self._answer(ScoreOut(id=name, error=error_out(problem)))
            return
        self._uploads[name] = upload
        self._line_bytes += size
        upload.task = asyncio.create_task(self._serve(upload))

    def _upload(self, message: pb.Sample, size: int) -> SampleUpload:
        self._application.require_ready()
        sample = parse(SampleIn, to_value(message))
        if sample.feedback is not None and sample.feedback.data:
            raise Problem(
                Code.INVALID_REQUEST,
                "feedback.data must be empty: on a stream it comes in chunks",
                field="feedback.data",
            )
        upload = SampleUpload(sample, size, self._clock, self._bounds.buffers)
        if upload.stated > self._bounds.max_bytes:
            raise Problem(
                Code.TOO_LARGE,
                f"the hidden states take {upload.stated} bytes, a sample may bring "
                f"{self._bounds.max_bytes}",
                field="feedback.shape",
            )
        return upload

    async def _take(self, name: str, data: Bytes) -> None:
        upload = self._uploads.get(name)
        if upload is None:
            self._take_late(name, data)
        elif upload.problem is None:
            problem = upload.fault(data)
            if problem is None and not await self._room(lambda: upload.admitted or _over(upload)):
                problem = _overloaded("no room for the sample's bytes")
            if problem is not None:
                upload.give_up(problem)
            elif not _over(upload):
                upload.add(data)

    def _take_late(self, name: str, data: Bytes) -> None:
        """A chunk of a sample that has its answer: ignored, unless that answer is a reward."""
        if name not in self._answered:
            raise Problem(
                Code.INVALID_REQUEST,
                f"a chunk came for sample {excerpt(name)}, which was not announced",
                field="chunk.id",
            )
        if self._answered[name] and data:
            # The reward was made of the bytes announced, and there were others. It is out, so the
            # best that can be done is to say so at once and loudly.
            self._answer(ScoreOut(id=name, error=error_out(late(name))))

    # ------------------------------------------------------------ room

    def _can_announce(self, size: int) -> bool:
        line = self._line_bytes
        return self._in_flight < self._bounds.max_samples and (
            line == 0 or line + size <= LINE_BYTES
        )

    async def _room(self, there: Callable[[], bool]) -> bool:
        """Stop reading until there is room; False where waiting on could be for ourselves."""
        if there():
            return True
        time = asyncio.get_running_loop().time
        with self._clock.stopped():
            end = None
            while not there():
                if not any(one.arriving for one in self._uploads.values()):
                    end = left = None
                else:
                    end = end or time() + HALT_SECONDS
                    left = end - time()
                    if left <= 0:
                        return False
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._changed.wait()
        return True

    # ------------------------------------------------------------ scoring and writing

    async def _serve(self, upload: SampleUpload) -> None:
        """A sample's life."""
        try:
            upload.begin()
            answer = await self._score(upload)
        except Problem as problem:
            answer = upload.failed(problem)
        except asyncio.CancelledError:
            if upload.problem is None:  # the stream is over
                raise
            answer = upload.failed(upload.problem)
        if not upload.admitted:
            self._line_bytes -= upload.message_bytes
        del self._uploads[upload.sample.id]
        self._answer(answer)

    async def _score(self, upload: SampleUpload) -> ScoreOut:
        size = upload.message_bytes + upload.stated
        async with self._bounds.budget.hold(size, wait=True):
            upload.admit()
            self._line_bytes -= upload.message_bytes
            self._changed.set()
            sample = await upload.arrive(self._bounds.idle_seconds)
            # Not earlier: how fast a client sends its chunks is not the server's latency.
            with counted(self._bounds.metrics, "grpc", STREAM_SAMPLE, part=True):
                tell(bytes=size)
                answer = await only_problems(self._scoring.score(sample), name="ScoreStream")
                if answer.error is not None:
                    note(answer.error.code)
                return answer

    def _answer(self, answer: ScoreOut) -> None:
        self._answered[answer.id] = answer.error is None
        self._answered.move_to_end(answer.id)
        if len(self._answered) > REMEMBERED:
            self._answered.popitem(last=False)
        self._unsent += 1
        self._answers.put_nowait(answer)
        self._changed.set()

    async def _write(self) -> None:
        seconds = self._bounds.idle_seconds
        while (answer := await self._answers.get()) is not None:
            part = pb.ScoreStreamResponse()
            part.score.MergeFromString(to_bytes(answer, pb.Score))
            try:
                async with asyncio.timeout(seconds):
                    await self._context.write(part.SerializeToString())
            except TimeoutError:
                raise Problem(
                    Code.DEADLINE_EXCEEDED, f"no answer was read for {seconds:g} seconds"
                ) from None
            self._unsent -= 1
            self._changed.set()


def _over(upload: SampleUpload) -> bool:
    return upload.problem is not None or (upload.task is not None and upload.task.done())


def _overloaded(what: str) -> Problem:
    return Problem(
        Code.OVERLOADED,
        f"{what}, while other samples of this stream are half sent: send a sample's chunks right "
        "behind it, or retry later",
    )
