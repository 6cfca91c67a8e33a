"""What atheris feeds: each target takes bytes, and may end in nothing but an answer or a Problem.

Streams are a run of frames, each behind its length in two bytes; every frame is one message.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "transports")]

import grpc.aio
from transport_fakes import FakeApplication

from r2m.errors import TABLE, Problem
from r2m.v1 import r2m_pb2 as pb
from r2m_service.application.contract import (
    AlignRequest,
    AnchorsRequest,
    CreateRunRequest,
    EvaluateRequest,
    LabelsRequest,
    ScoreRequest,
)
from r2m_service.application.parsing import parse, parse_json
from r2m_service.application.samples import content_hash, decode_feedback, prompt_hash, text_hash
from r2m_service.transports.compat.dialects import DIALECTS
from r2m_service.transports.compat.rewards import named
from r2m_service.transports.grpc.messages import decode as decode_message
from r2m_service.transports.grpc.messages import to_value
from r2m_service.transports.grpc.methods import UNARY
from r2m_service.transports.grpc.score_stream import ScoreStream
from r2m_service.transports.grpc.score_uploads import Bounds
from r2m_service.transports.grpc.streams import AlignStream
from r2m_service.transports.http.tensors import attach, decode
from r2m_service.transports.limits import ByteBudget

MODELS = (
    ScoreRequest,
    AlignRequest,
    CreateRunRequest,
    EvaluateRequest,
    AnchorsRequest,
    LabelsRequest,
)
MAX_BYTES = 1 << 16
IDLE = 0.2


def json_body(data: bytes) -> None:
    """A JSON body as each of the requests; tensors in base64 are decoded, contents hashed."""
    for model in MODELS:
        with_problems(lambda model=model: _use(parse_json(model, data)))


def trainers_body(data: bytes) -> None:
    """A JSON body in each trainer's form, as samples with the names they get."""
    for dialect in DIALECTS:
        with_problems(lambda one=dialect: named(one.samples(parse_json(one.request, data))[:8]))


def safetensors_body(data: bytes) -> None:
    """A safetensors body: header, offsets, the request in its metadata."""

    def read() -> None:
        request, tensors = decode(bytearray(data))
        held = attach(request, tensors)
        for model in (ScoreRequest, AlignRequest, EvaluateRequest):
            with_problems(lambda model=model: _use(parse(model, held)))

    with_problems(read)


def protobuf_message(data: bytes) -> None:
    """Bytes as each unary method's request."""
    for method in UNARY.values():
        with_problems(lambda method=method: to_value(decode_message(method.request, data)))
    with_problems(
        lambda: _use(parse(ScoreRequest, _without_run(decode_message(pb.ScoreRequest, data))))
    )
    with_problems(
        lambda: _use(parse(AlignRequest, _without_run(decode_message(pb.AlignRequest, data))))
    )


def align_stream(data: bytes) -> None:
    """Frames of an AlignStream."""

    async def serve(context: Any, budget: ByteBudget) -> None:
        stream = AlignStream(
            FakeApplication(), max_bytes=MAX_BYTES, budget=budget, idle_seconds=IDLE
        )
        await stream(context)

    asyncio.run(_streamed(data, serve))


def score_stream(data: bytes) -> None:
    """Frames of a ScoreStream."""

    async def serve(context: Any, budget: ByteBudget) -> None:
        bounds = Bounds(max_bytes=MAX_BYTES, max_samples=8, budget=budget, idle_seconds=IDLE)
        await ScoreStream(FakeApplication(), bounds)(context)

    asyncio.run(_streamed(data, serve))


def head_file(data: bytes) -> None:
    """A head's safetensors file: whatever is wrong is a ValueError of one kind or another."""
    from safetensors import SafetensorError

    from r2m_service.modeling.head import Head

    try:
        Head.from_bytes(data)
    except (ValueError, SafetensorError, AttributeError, KeyError, TypeError):
        # Heads are read after their hash was compared: whoever made one is this server.
        return


TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one
    for one in (
        json_body,
        trainers_body,
        safetensors_body,
        protobuf_message,
        align_stream,
        score_stream,
        head_file,
    )
}


def with_problems(work: Callable[[], object]) -> None:
    """Run; a Problem must be of the table and say something."""
    try:
        work()
    except Problem as problem:
        assert problem.code in TABLE, problem
        assert problem.message, problem


def frames(data: bytes) -> Iterator[bytes]:
    """The messages of a stream."""
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "little")
        yield data[at + 2 : at + 2 + size]
        at += 2 + size


def joined(messages: Any) -> bytes:
    """A stream's messages as a target takes them."""
    return b"".join(len(one).to_bytes(2, "little") + one for one in messages)


class _Context:
    """A client that has sent everything, and reads everything."""

    def __init__(self, messages: Iterator[bytes]) -> None:
        self._messages = messages
        self.written = 0

    async def read(self) -> Any:
        return next(self._messages, grpc.aio.EOF)

    async def write(self, message: bytes) -> None:
        self.written += 1

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


async def _streamed(data: bytes, serve: Callable[[Any, ByteBudget], Any]) -> None:
    budget = ByteBudget(2 * MAX_BYTES)
    try:
        async with asyncio.timeout(20):
            await serve(_Context(frames(data)), budget)
    except Problem as problem:
        assert problem.code in TABLE, problem
        assert problem.message, problem
    # Nothing that was reserved stays so, and nobody is left working on it.
    assert budget.used == 0
    assert len(asyncio.all_tasks()) == 1


def _use(request: Any) -> None:
    """What a use case does first with a request's samples."""
    if isinstance(request, AlignRequest):
        decode_feedback([sample for group in request.groups for sample in group.samples])
        content_hash(request)
    if isinstance(request, ScoreRequest):
        decode_feedback(request.samples)
        for sample in request.samples[:8]:
            prompt_hash(sample)
            text_hash(sample)


def _without_run(message: Any) -> dict[str, Any]:
    value = to_value(message)
    value.pop("run")
    return value
