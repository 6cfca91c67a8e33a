"""From the messages of a stream to a sample's c: buffers, copies, or no buffer at all.

Every way starts from what gRPC hands over, messages with chunks of 1 MiB as bytes, and ends with
the pooled states: bfloat16, one thread. Processor time, so that other work on the machine counts
little; interleaved, medians, as shares of `before`; `before again` is the noise.

    before      messages decoded by protobuf, a new bytearray for each sample
    cloned      the same where it is not aligned and so was copied once more
    decoded     messages decoded by protobuf, memory of a BufferPool
    unpooled    messages read in place, new memory each time
    now         messages read in place, memory of a BufferPool: what the server does
    fed         messages read in place, no memory: each chunk into the sums as it comes
    sums        the sums alone, over states that lie there

    python benchmarks/feedback_receive.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from r2m.v1 import r2m_pb2 as pb
from r2m_service.modeling.attention import OnlinePool, Pooled, pool
from r2m_service.transports.buffers import BufferPool
from r2m_service.transports.grpc.chunks import chunk_of

MIB = 1 << 20
CHUNK = pb.ScoreStreamRequest.DESCRIPTOR.fields_by_name["chunk"].number
NAMES = ("before", "before_again", "cloned", "decoded", "unpooled", "now", "fed", "sums")
SHAPES = ((256, 576), (1024, 2048), (1024, 4096), (4096, 4096))


class Ways:
    """The ways to take one sample's messages.

    Args:
        messages: serialized, as gRPC hands them over.
        shape: [S, D_p].
        u_P: the query.
    """

    def __init__(self, messages: Sequence[bytes], shape: tuple[int, int], u_P: Tensor) -> None:
        self._messages, self._shape, self._u_P = messages, shape, u_P
        self._size = 2 * shape[0] * shape[1]
        self._kept, self._unpooled = BufferPool(self._size * 2), BufferPool()
        self._there = self._filled(bytearray(self._size), decoded)

    def before(self) -> Pooled:
        return self._pooled(self._filled(bytearray(self._size), decoded))

    def cloned(self) -> Pooled:
        return self._pooled(self._filled(bytearray(self._size), decoded), clone=True)

    def decoded(self) -> Pooled:
        return self._pooled(self._filled(self._kept.take(self._size), decoded))

    def unpooled(self) -> Pooled:
        return self._pooled(self._filled(self._unpooled.take(self._size), in_place))

    def now(self) -> Pooled:
        return self._pooled(self._filled(self._kept.take(self._size), in_place))

    def fed(self) -> Pooled:
        return self._fed(in_place)

    def sums(self) -> Pooled:
        return self._pooled(self._there)

    def _fed(self, data: Callable[[bytes], Any]) -> Pooled:
        sums = OnlinePool(self._u_P)
        rest: Any = b""
        row = 2 * self._shape[1]
        for message in self._messages:
            part = data(message)
            if rest:
                part = rest + bytes(part)
            whole = len(part) // row * row
            rest = bytes(part[whole:])
            h_SP = torch.frombuffer(part, dtype=torch.bfloat16, count=whole // 2)
            for piece_SP in h_SP.reshape(-1, self._shape[1]).split(256):
                sums.update(piece_SP)
        return sums.finish()

    def _filled(self, buffer: Any, data: Callable[[bytes], Any]) -> Any:
        view, filled = memoryview(buffer).cast("B"), 0
        for message in self._messages:
            part = data(message)
            view[filled : filled + len(part)] = part
            filled += len(part)
        return buffer

    def _pooled(self, buffer: Any, *, clone: bool = False) -> Pooled:
        h_SP = torch.frombuffer(buffer, dtype=torch.bfloat16).reshape(self._shape)
        return pool(h_SP.clone() if clone else h_SP, self._u_P)


def decoded(message: bytes) -> Any:
    return pb.ScoreStreamRequest.FromString(message).chunk.data


def in_place(message: bytes) -> Any:
    found = chunk_of(message, CHUNK)
    assert found is not None
    return found[1]


def messages_of(data: bytes) -> list[bytes]:
    found: list[bytes] = []
    for start in range(0, len(data), MIB):
        chunk = pb.Chunk(id="sample-17", data=data[start : start + MIB])
        found.append(pb.ScoreStreamRequest(chunk=chunk).SerializeToString())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Ways from messages to pooled states.")
    parser.add_argument("--rounds", type=int, default=41)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| S × D_p | " + " | ".join(name.replace("_", " ") for name in NAMES) + " |")
    print("| --- |" + " --- |" * len(NAMES))
    for shape in SHAPES:
        draw = torch.Generator().manual_seed(0)
        states: Any = torch.randn(shape, generator=draw).bfloat16().view(torch.int16).numpy()
        u_P = torch.randn(shape[1], generator=draw) / shape[1] ** 0.5
        ways = Ways(messages_of(states.tobytes()), shape, u_P)
        expected = ways.before().c_P
        spent: dict[str, list[float]] = {name: [] for name in NAMES}
        for _ in range(rounds):
            for name in NAMES:
                started = time.thread_time()
                pooled = getattr(ways, name.removesuffix("_again"))()
                spent[name].append(time.thread_time() - started)
                torch.testing.assert_close(pooled.c_P, expected, rtol=1e-4, atol=1e-5)
        base = statistics.median(spent["before"])
        cells = [f"{statistics.median(spent[name]) / base:.2f}" for name in NAMES]
        cells[0] = f"{1e3 * base:.2f} ms"
        print(f"| {shape[0]} × {shape[1]} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
