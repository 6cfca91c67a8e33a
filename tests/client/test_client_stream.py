"""What a score stream makes of a server's messages; the streams themselves: tests/scenario."""

from __future__ import annotations

import math
import time

import pytest

from r2m.v1 import r2m_pb2 as pb
from r2m_client import ProtocolError, Sample, StreamFailed, _calls
from r2m_client._grpc_wire import CHUNK_BYTES, ScoreStreamWire
from r2m_client._stream_ledger import Ledger


def wire(head: int | str = 3) -> ScoreStreamWire:
    call = _calls.score((), run="x", head=head, wire_dtype="float32")
    return ScoreStreamWire(call, "float32")


def opened() -> bytes:
    answer = pb.ScoreResponse(run="x", head=3, branch="main", omega=0.6, fingerprint="f")
    return pb.ScoreStreamResponse(opened=answer).SerializeToString()


def answer(name: str, reward: float = 1.5) -> bytes:
    return pb.ScoreStreamResponse(score=pb.Score(id=name, reward=reward)).SerializeToString()


def ledger(*names: str, timeout: float = 60.0) -> Ledger:
    made = Ledger(wire(), timeout)
    made.take(opened())
    for name in names:
        made.send(Sample(name, "p", "r"))
    return made


def test_the_first_message_names_run_and_head():
    first = pb.ScoreStreamRequest.FromString(wire("best").opening).open
    assert (first.run, first.head, len(first.samples)) == ("x", "best", 0)


def test_a_sample_and_its_chunks():
    import numpy as np

    array = np.arange(3 * CHUNK_BYTES // 4, dtype=np.float32)[None]
    messages = list(wire().sample(Sample("a", "p", "r", array, group="g", tokens=1)))
    parts = [pb.ScoreStreamRequest.FromString(one) for one in messages]
    sample = parts[0].sample
    assert (sample.id, sample.group, sample.feedback.data) == ("a", "g", b"")
    assert list(sample.feedback.shape) == list(array.shape)
    assert [len(one.chunk.data) for one in parts[1:]] == [CHUNK_BYTES] * 3
    assert b"".join(one.chunk.data for one in parts[1:]) == array.tobytes()


def test_answers_are_fetched_in_their_order_then_it_ends():
    book = ledger("a", "b")
    assert book.opened is not None
    assert (book.opened.head, book.opened.fingerprint) == (3, "f")
    book.take(answer("b", 2.0))
    book.take(answer("a", 1.0))
    book.take(b"")  # a newer server's message
    book.finished = True
    book.end()
    assert [(one.id, one.reward) for one in (book.fetch(), book.fetch()) if one] == [
        ("b", 2.0),
        ("a", 1.0),
    ]
    with pytest.raises(StopIteration):
        book.fetch()


@pytest.mark.parametrize("payload", [answer("z"), answer("a", math.nan), b"\xff\xff"])
def test_answers_that_are_none(payload):
    with pytest.raises(ProtocolError):
        ledger("a").take(payload)


def test_a_second_answer_is_not_believed():
    book = ledger("a")
    book.take(answer("a"))
    with pytest.raises(ProtocolError, match="waits for none"):
        book.take(answer("a"))


@pytest.mark.parametrize("finished", [True, False])
def test_a_stream_that_is_closed_too_early(finished):
    book = ledger("a", "b")
    book.take(answer("a"))
    book.finished = finished
    book.end()
    score = book.fetch()  # what came is not lost
    assert score is not None
    assert score.id == "a"
    with pytest.raises(StreamFailed, match="before it had answered all") as caught:
        book.fetch()
    assert [one.id for one in caught.value.pending] == ["b"]


def test_silence_counts_only_while_samples_wait():
    book = ledger(timeout=0.02)
    time.sleep(0.03)
    assert book.patience() is None
    book.send(Sample("a", "p", "r"))
    left = book.patience()
    assert left is not None
    assert left > 0.01
    time.sleep(0.03)
    assert book.patience() == 0
    with pytest.raises(StreamFailed, match="nothing moved"):
        book.check()


def test_an_id_that_waits_for_its_answer():
    book = ledger("a")
    with pytest.raises(ValueError, match="without an answer"):
        book.send(Sample("a", "p", "r"))
    book.take(answer("a"))
    book.send(Sample("a", "p", "r"))
