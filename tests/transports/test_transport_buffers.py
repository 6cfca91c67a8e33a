"""Memory for hidden states: aligned, used again, and never while somebody reads it."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r2m.v1 import r2m_pb2 as pb
from r2m_service.transports.buffers import ALIGNMENT, SMALLEST, BufferPool
from r2m_service.transports.grpc.chunks import chunk_of

MIB = 1 << 20


def address(memory):
    return np.frombuffer(memory, np.uint8).ctypes.data


@pytest.mark.parametrize("size", [0, 1, 17, SMALLEST - 1, SMALLEST, 3 * MIB + 5])
def test_memory_is_aligned_writable_and_as_large_as_asked(size):
    memory = BufferPool(8 * MIB).take(size)
    assert len(memory) == memory.nbytes == size
    assert not memory.readonly
    assert size == 0 or address(memory) % ALIGNMENT == 0


def test_memory_is_used_again_for_a_like_size():
    pool = BufferPool(8 * MIB)
    first = pool.take(MIB)
    where = address(first)
    del first
    assert MIB <= pool.kept <= 5 * MIB // 4
    assert address(pool.take(MIB - 100)) == where


@pytest.mark.parametrize(
    "reader",
    [
        lambda memory: memory[:100],
        lambda memory: memory[100:].toreadonly(),
        lambda memory: np.frombuffer(memory, np.uint8),
        lambda memory: torch.frombuffer(memory, dtype=torch.bfloat16).reshape(2, -1)[1],
    ],
    ids=["slice", "slice of a slice", "numpy", "torch"],
)
def test_memory_that_somebody_reads_is_not_lent_again(reader):
    pool = BufferPool(8 * MIB)
    memory = pool.take(MIB)
    where, kept = address(memory), reader(memory)
    del memory
    assert pool.kept == 0
    assert address(pool.take(MIB)) != where
    del kept
    assert address(pool.take(MIB)) == where


def test_what_is_kept_is_bounded_and_old_sizes_make_room():
    pool = BufferPool(4 * MIB)
    lent = [pool.take(MIB) for _ in range(6)]
    lent.clear()
    assert pool.kept == 4 * MIB
    large = pool.take(3 * MIB)
    where = address(large)
    del large
    assert pool.kept == 4 * MIB
    assert address(pool.take(3 * MIB)) == where
    del lent
    too_large = pool.take(5 * MIB)
    del too_large
    assert pool.kept <= 4 * MIB


def test_nothing_is_kept_without_a_bound_for_it():
    pool = BufferPool()
    memory = pool.take(MIB)
    del memory
    assert pool.kept == 0


def test_the_allocator_is_asked_once():
    asked = []

    def allocate(size):
        asked.append(size)
        return np.empty(size, np.uint8)

    pool = BufferPool(8 * MIB, allocate)
    for _ in range(3):
        memory = pool.take(MIB)
        del memory
    assert len(asked) == 1


def test_threads_never_share_memory():
    pool, wrong = BufferPool(2 * MIB), []

    def work(mark):
        for _ in range(200):
            memory = pool.take(SMALLEST)
            states = np.frombuffer(memory, np.uint8)
            states[:] = mark
            if not (states == mark).all():
                wrong.append(mark)
            del memory, states

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.kept <= 4 * SMALLEST


# ------------------------------------------------------------------ chunks as they lie

STREAMS = [pb.ScoreStreamRequest, pb.AlignStreamRequest]


def field(stream):
    return stream.DESCRIPTOR.fields_by_name["chunk"].number


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("size", [1, 127, 128, 20_000, MIB])
def test_the_usual_form_is_read_in_place(stream, size):
    data = np.random.default_rng(size).bytes(size)
    raw = stream(chunk=pb.Chunk(id="zürich", data=data)).SerializeToString()
    name, found = chunk_of(raw, field(stream))
    assert (name, bytes(found)) == ("zürich", data)
    assert found.obj is raw


@pytest.mark.parametrize("stream", STREAMS)
@given(
    raw=st.one_of(
        st.binary(max_size=40),
        st.builds(
            lambda name, data, tail, cut: (
                pb.ScoreStreamRequest(chunk=pb.Chunk(id=name, data=data)).SerializeToString() + tail
            )[cut:],
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
            st.binary(max_size=8),
            st.binary(max_size=6),
            st.integers(0, 3),
        ),
    )
)
def test_whatever_is_read_is_what_protobuf_reads(stream, raw):
    """And what is not is left to protobuf."""
    found = chunk_of(raw, field(stream))
    if found is not None:
        message = stream.FromString(raw)
        assert message.WhichOneof("part") == "chunk"
        assert (message.chunk.id, message.chunk.data) == (found[0], bytes(found[1]))


@pytest.mark.parametrize(
    "raw",
    [
        pb.ScoreStreamRequest(chunk=pb.Chunk(id="a", data=b"x")).SerializeToString()[:-1],
        pb.ScoreStreamRequest(chunk=pb.Chunk(id="a", data=b"x")).SerializeToString() + b"\0",
        pb.ScoreStreamRequest(chunk=pb.Chunk(data=b"x")).SerializeToString(),
        pb.ScoreStreamRequest(sample=pb.Sample(id="a")).SerializeToString(),
        b"\x1a\x06\x0a\x01\xff\x12\x01x",
        b"\x1a\xff\xff\xff\xff\xff\xff\xff",
        b"",
    ],
)
def test_other_forms_are_left_to_protobuf(raw):
    assert chunk_of(raw, field(pb.ScoreStreamRequest)) is None
