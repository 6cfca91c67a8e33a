"""Score streams of a fake: every sample is a score of its own, by the head of the opening."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from r2m_client import _calls
from r2m_client._errors import R2MError, ServerError
from r2m_client._reading import finite, read
from r2m_client._results import Score, ScoreResult
from r2m_client._safetensors import json_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from r2m_client._calls import Call
    from r2m_client._samples import Sample, WireDtype

    Send = Callable[[Call[Any]], object]


class FakeStream:
    """The messages (implements `Wire`), and what answers them.

    Args:
        call: a score without samples: run and head.
        wire_dtype: what float32 and wider hidden states are sent as.
        send: carries out a call; raises R2MError.
    """

    opening = b"open"

    def __init__(self, call: Call[ScoreResult], wire_dtype: WireDtype, send: Send) -> None:
        self._call = call
        self._wire_dtype: WireDtype = wire_dtype
        self._send = send
        self._calls: dict[bytes, Call[ScoreResult]] = {}
        self._head: int | str = "live"
        self._open = False

    def sample(self, sample: Sample) -> Iterator[bytes]:
        """One message: the fake needs no chunks. Raises ValueError."""
        run = self._call.names.get("run")
        call = _calls.score(
            [sample],
            run=None if run is None else str(run),
            head=self._head,
            wire_dtype=self._wire_dtype,
        )
        message = sample.id.encode()
        self._calls[message] = call
        return iter((message,))

    def read(self, payload: bytes) -> ScoreResult | Score | None:
        """The head, or an answer. Raises ProtocolError."""
        answer = json.loads(payload)
        if "opened" in answer:
            return read(ScoreResult, answer["opened"])
        return finite(read(Score, answer["score"]))

    def answer(self, message: bytes) -> bytes:
        """The server's answer to one of the messages. Raises R2MError."""
        if not self._open:
            opened: Any = self._send(self._call)
            self._head, self._open = opened.get("head", "live"), True
            return json_bytes({"opened": opened})
        try:
            answer: Any = self._send(self._calls.pop(message))
        except ServerError as error:
            if error.retryable:
                raise
            refused = {"code": error.code, "message": error.message, "field": error.field}
            return json_bytes({"score": {"id": message.decode(), "error": refused}})
        return json_bytes({"score": answer["scores"][0]})


class FakeAnswers:
    """Implements `Answers`."""

    def __init__(self, stream: FakeStream, messages: Iterator[bytes]) -> None:
        self._stream = stream
        self._messages = messages

    def __iter__(self) -> Iterator[bytes]:
        """The server's messages. Raises R2MError."""
        for message in self._messages:
            yield self._stream.answer(message)

    def cancel(self) -> None:
        """Nothing to do: the messages end by themselves."""


class FakeDuplex:
    """Implements `Duplex`."""

    def __init__(self, stream: FakeStream) -> None:
        self._stream = stream
        self._answers: asyncio.Queue[bytes | R2MError | None] = asyncio.Queue()

    async def write(self, payload: bytes) -> None:
        """Send a message; its answer is there at once."""
        await asyncio.sleep(0)
        try:
            self._answers.put_nowait(self._stream.answer(payload))
        except R2MError as error:
            self._answers.put_nowait(error)

    async def done(self) -> None:
        """Close the sending side."""
        self._answers.put_nowait(None)

    async def read(self) -> bytes | None:
        """The next answer; None at the end. Raises R2MError."""
        found = await self._answers.get()
        if isinstance(found, R2MError):
            raise found
        return found

    def cancel(self) -> None:
        """End the call."""
        self._answers.put_nowait(None)
