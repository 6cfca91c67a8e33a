"""Scores in the background: the same results, a bounded number at once, and an end."""

import threading
import time
from concurrent.futures import wait

import pytest

from r2m_client import NotFound, Sample, ScoreResult
from r2m_client._score_futures import AT_ONCE, ScoreFutures
from r2m_client.split import Context
from r2m_client.testing import FakeServer


def batch(name, count=3):
    return [Sample(f"{name}-{k}", "p", f"{name} {k}") for k in range(count)]


@pytest.fixture
def client():
    with FakeServer(lambda sample, head: len(sample.response) + head).client() as one:
        one.create_run("r", feedback="none")
        yield one


def test_a_future_is_the_score(client):
    samples = batch("a")
    future = client.score_async(iter(samples), run="r", head=0)
    assert future.result() == client.score(samples, run="r", head=0)


def test_an_error_is_raised_where_the_result_is_asked_for(client):
    future = client.score_async(batch("a"), run="nobody")
    with pytest.raises(NotFound, match="nobody"):
        future.result()


def test_a_closed_client_can_be_closed_again(client):
    future = client.score_async(batch("a"), run="r")
    client.close()
    assert future.done()
    client.close()


class Slow(ScoreFutures):
    """A client whose scores of slow samples wait until they may go on."""

    def __init__(self):
        self.open, self.begun = threading.Event(), threading.Semaphore(0)

    def score(self, samples, **_):
        if samples[0].id.startswith("slow"):
            self.begun.release()
            assert self.open.wait(30)
        return ScoreResult("f")


def test_others_are_scored_while_one_waits():
    client = Slow()
    slow = client.score_async(batch("slow"))
    assert not wait([client.score_async(batch(f"q{n}")) for n in range(20)], 30).not_done
    assert not slow.done()
    client.open.set()
    assert slow.result() == ScoreResult("f")
    client._end_background()


def test_close_waits_for_what_has_begun_and_cancels_the_rest():
    client = Slow()
    futures = [client.score_async(batch(f"slow{n}")) for n in range(AT_ONCE + 3)]
    for _ in range(AT_ONCE):
        assert client.begun.acquire(timeout=30)
    assert not client.begun.acquire(timeout=0.05)
    closing = threading.Thread(target=client._end_background)
    closing.start()
    while not futures[-1].cancelled():  # `wait` does not see a shutdown's
        time.sleep(0.001)
    client.open.set()
    closing.join()
    assert [one.cancelled() for one in futures] == [False] * AT_ONCE + [True] * 3
    assert all(one.result() for one in futures[:AT_ONCE])


def test_one_context_of_several():
    first, second = Context(b"v", {"a": b"1"}, 3), Context(b"v", {"b": b"2"}, 3)
    other = Context(b"w", {"c": b"3"}, 4)
    joined = Context.joined([None, first, other, second])
    assert joined == Context(b"v", {"a": b"1", "b": b"2"}, 3)
    assert Context.joined([None]) is None
