"""A client of ScoreStream that writes any message at any time."""

from __future__ import annotations

import asyncio
import zlib

import grpc.aio
from transport_wires import SERVICE, grpc_failure

from r2m.v1 import r2m_pb2 as pb

OPEN = pb.ScoreStreamRequest(open=pb.ScoreRequest(run="x"))


def announce(name: str, numbers: int | None = None, *, dtype="float16", shape=None, **more):
    """A sample with this many numbers of two bytes to come; None: without hidden states."""
    sample = pb.Sample(id=name, **{"prompt": "p", "response": "r", **more})
    if numbers is not None or shape is not None:
        sample.feedback.dtype = dtype
        sample.feedback.shape.extend([1, numbers] if shape is None else shape)
    return pb.ScoreStreamRequest(sample=sample)


def chunk(name: str, data: bytes):
    return pb.ScoreStreamRequest(chunk=pb.Chunk(id=name, data=data))


def reward(data: bytes) -> float:
    """What FakeScoring makes of these bytes."""
    return zlib.crc32(data)


class Stream:
    """One call."""

    def __init__(self, wires, *, opening=OPEN, channel=None) -> None:
        channel = channel or wires.channel
        self._call = channel.stream_stream(f"/{SERVICE}/ScoreStream")(timeout=15)
        self._opening = opening
        self._writing = asyncio.Lock()  # gRPC takes one write of a call at a time
        self.opened = None

    async def __aenter__(self):
        await self.write(self._opening)
        self.opened = (await self.read()).opened
        return self

    async def __aexit__(self, *_):
        self._call.cancel()

    def cancel(self) -> None:
        self._call.cancel()

    async def write(self, *parts) -> None:
        for part in parts:
            raw = part if isinstance(part, bytes) else part.SerializeToString()
            async with self._writing:
                await self._call.write(raw)

    async def done(self) -> None:
        await self._call.done_writing()

    async def next(self) -> pb.Score:
        part = await self.read()
        assert part.WhichOneof("part") == "score"
        return part.score

    async def rest(self) -> list[pb.Score]:
        """What still comes after the client's side is closed."""
        await self.done()
        return await self.rest_of_answers()

    async def rest_of_answers(self) -> list[pb.Score]:
        """What still comes until the server ends the call."""
        found = []
        while (part := await self.read()) is not None:
            found.append(part.score)
        return found

    async def failure(self):
        """How a stream that the server ends ended; answers before it are dropped."""
        try:
            await self.rest_of_answers()
        except grpc.aio.AioRpcError as error:
            return grpc_failure(error)
        return None

    async def read(self):
        raw = await self._call.read()
        return None if raw is grpc.aio.EOF else pb.ScoreStreamResponse.FromString(raw)


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.005)
