"""Score streams over a real server: the same rewards as any other way, whatever a client does."""

import asyncio
import pickle
import threading
import time

import numpy as np
import pytest
from support.rollouts import WIDTH_P, groups, samples, states
from support.serving import running
from support.streams import Proxy, Raw

from r2m_client import (
    AsyncClient,
    Client,
    ConnectError,
    DeadlineError,
    NotFound,
    Sample,
    StepOutOfOrder,
    StreamFailed,
)
from r2m_service.transports.grpc import streams
from r2m_service.transports.limits import ByteBudget

METHOD = {"width": 16, "learning_rate": 3e-4}
BUDGET = 60_000
IDLE = 0.5


@pytest.fixture(scope="module")
def budget():
    return ByteBudget(BUDGET)


@pytest.fixture(scope="module")
def server(reward_model, backbone, tmp_path_factory, budget):
    """Deterministic, with a small budget, where idle uploads expire soon."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    bounds = {"budget": budget, "idle_seconds": IDLE}
    state = tmp_path_factory.mktemp("streams")
    with running(
        reward_model, state, backbone=backbone, over_grpc=bounds, deterministic=True
    ) as one:
        yield one
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="module")
def run(server):
    """A run with three heads whose rewards differ."""
    with Client(server.urls["http"], wire_dtype="float32") as client:
        client.create_run("streams", policy_hidden_size=WIDTH_P, method=METHOD)
        for step in (1, 2):
            assert client.align("streams", step=step, groups=groups(step)).accepted
    return "streams"


@pytest.fixture
def client(server):
    with Client(server.urls["grpc"], wire_dtype="float32", retries=0) as one:
        yield one


@pytest.fixture(autouse=True)
def nothing_is_held(budget):
    """After every test the server holds no byte of a stream."""
    yield
    end = time.monotonic() + 5
    while budget.used and time.monotonic() < end:
        time.sleep(0.01)
    assert budget.used == 0


def rollouts(count, *, seed=1):
    return [one for n in range(-(-count // 4)) for one in samples(seed + n, group=f"g{n}")][:count]


def answers(client, batch, **which):
    """A batch over a stream, from one thread: everything in, then everything out."""
    with client.score_stream(**which) as stream:
        for sample in batch:
            stream.send(sample)
        stream.finish()
        return {score.id: score for score in stream}


# ------------------------------------------------------------------ the same rewards


def test_a_stream_gives_the_rewards_of_the_other_ways(server, client, run):
    batch = rollouts(24)
    streamed = answers(client, batch, run=run)
    assert len(streamed) == 24
    unary = client.score(batch, run=run)
    with Client(server.urls["http"], wire_dtype="float32") as other:
        over_http = other.score(batch, run=run)
    assert [streamed[s.id].reward for s in batch] == unary.rewards == over_http.rewards
    assert None not in unary.rewards
    assert [streamed[s.id].vanilla_reward for s in batch] == [
        s.vanilla_reward for s in unary.scores
    ]


def test_opened_names_the_head(client, run):
    with client.score_stream(run=run, head=1) as stream:
        batch = rollouts(2)
        unary = client.score(batch, run=run, head=1)
        same = ("run", "head", "branch", "omega", "fingerprint")
        assert [getattr(stream.opened, name) for name in same] == [
            getattr(unary, name) for name in same
        ]
        for sample in batch:
            stream.send(sample)
        assert {next(stream).reward for _ in batch} == set(unary.rewards)


def test_a_step_names_the_head_of_the_stream(client, run):
    batch = rollouts(3)
    for step, head in ((1, 0), (2, 1), (3, 2)):
        with client.score_stream(run=run, step=step, branch="main") as stream:
            assert stream.opened.head == head
        found = answers(client, batch, run=run, step=step)
        unary = client.score(batch, run=run, step=step)
        assert [found[s.id].reward for s in batch] == unary.rewards
    with pytest.raises(StepOutOfOrder), client.score_stream(run=run, step=4):
        pass
    with pytest.raises(ValueError, match="of which run"):
        client.score_stream(step=1)


def test_without_a_run(client):
    batch = [Sample(s.id, s.prompt, s.response) for s in rollouts(5)]
    found = answers(client, batch)
    unary = client.score(batch)
    assert [found[s.id].vanilla_reward for s in batch] == [s.vanilla_reward for s in unary.scores]


def test_a_head_swap_changes_nothing_in_an_open_stream(client):
    batch, run = rollouts(8, seed=3), "swapped"
    client.create_run(run, policy_hidden_size=WIDTH_P, method=METHOD)
    before = client.score(batch, run=run)
    with client.score_stream(run=run) as stream:
        assert stream.opened.head == 0
        for step, sample in enumerate(batch, start=1):
            stream.send(sample)
            if step <= 3:
                assert client.align(run, step=step, groups=groups(step)).head == step
        stream.finish()
        rewards = {score.id: score.reward for score in stream}
    assert [rewards[s.id] for s in batch] == before.rewards
    after = answers(client, batch, run=run)
    live = client.score(batch, run=run)
    assert live.head == 3
    assert [after[s.id].reward for s in batch] == live.rewards
    assert live.rewards != before.rewards


def test_two_thousand_tiny_samples(client):
    batch = [Sample(str(n), "a", str(n % 50), format="raw") for n in range(2000)]
    found = answers(client, batch)
    assert len(found) == 2000
    assert not [score for score in found.values() if score.error]
    alike = {}
    for sample in batch:
        alike.setdefault(sample.response, set()).add(found[sample.id].vanilla_reward)
    assert {len(values) for values in alike.values()} == {1}


def test_much_more_than_the_budget(client, run):
    batch = [
        Sample(f"s{n}", "p", f"r{n}", states(n, tokens=200 + n)) for n in range(12)
    ]  # each a third of the budget
    assert sum(sample.hidden_states.nbytes for sample in batch) > 3 * BUDGET
    found = answers(client, batch, run=run)
    for sample in batch:
        (alone,) = client.score([sample], run=run).scores
        assert found[sample.id].reward == alone.reward


def test_one_thread_sends_and_another_reads(client, run):
    batch = rollouts(40)
    with client.score_stream(run=run) as stream:
        senders = [
            threading.Thread(target=lambda at=at: [stream.send(s) for s in batch[at : at + 10]])
            for at in range(0, 40, 10)
        ]
        for one in senders:
            one.start()
        found = {next(stream).id for _ in batch}
        for one in senders:
            one.join()
        assert stream.pending == ()
        stream.finish()
        assert list(stream) == []
    assert found == {sample.id for sample in batch}


def test_asyncio(server, run):
    batch = rollouts(24)

    async def main():
        async with (
            AsyncClient(server.urls["grpc"], wire_dtype="float32") as client,
            client.score_stream(run=run) as stream,
        ):
            assert stream.opened.head == 2
            async with client.score_stream(run=run, step=2) as earlier:
                assert earlier.opened.head == 1

            async def produce():
                await asyncio.gather(*(stream.send(sample) for sample in batch))
                await stream.finish()

            work = asyncio.create_task(produce())
            found = {score.id: score.reward async for score in stream}
            await work
            unary = await client.score(batch, run=run)
            assert [found[s.id] for s in batch] == unary.rewards
            with pytest.raises(ValueError, match="finished"):
                await stream.send(batch[0])

    asyncio.run(main())


# ------------------------------------------------------------------ errors


def test_a_samples_error_does_not_end_the_stream(client, run):
    bad = {
        "none": (Sample("none", "p", "r"), "feedback_missing"),
        "wide": (Sample("wide", "p", "r", states(1, width=WIDTH_P + 1)), "feedback_width"),
        "nan": (Sample("nan", "p", "r", np.full((2, WIDTH_P), np.nan)), "feedback_not_finite"),
        "empty": (Sample("empty", "", "r", states(1)), "text_empty"),
        "long": (Sample("long", "p", "r " * 500, states(1)), "text_too_long"),
    }
    good = rollouts(3)
    found = answers(client, [good[0], *(s for s, _ in bad.values()), *good[1:]], run=run)
    assert {name: found[name].error.code for name in bad} == {n: c for n, (_, c) in bad.items()}
    assert [found[s.id].reward for s in good] == client.score(good, run=run).rewards


def test_a_sample_beyond_the_bound_is_refused_alone(client, run):
    good = rollouts(1)[0]
    found = answers(client, [Sample("huge", "p", "r", states(1, tokens=700)), good], run=run)
    assert found["huge"].error.code == "too_large"
    assert found[good.id].reward == client.score([good], run=run).rewards[0]


def test_what_is_refused_before_anything_is_sent(client, run):
    with client.score_stream(run=run) as stream:
        with pytest.raises(ValueError, match="expected \\[tokens, width\\]"):
            stream.send(Sample("a", "p", "r", np.zeros(3)))
        wait = Sample("b", "p", "r", states(1))
        stream.send(wait)
        assert next(stream).reward is not None
        stream.send(wait)  # answered: the id is free
        stream.finish()
        assert [score.id for score in stream] == ["b"]
        with pytest.raises(ValueError, match="finished"):
            stream.send(wait)


def test_what_is_not_there_is_said_when_the_stream_opens(client, run, monkeypatch):
    monkeypatch.setattr(streams, "DRAIN_SECONDS", 0.05)
    for which, code in (
        ({"run": "nobody"}, "unknown_run"),
        ({"run": run, "head": 99}, "unknown_head"),
        ({"run": run, "head": "nice"}, "unknown_alias"),
    ):
        with pytest.raises(NotFound) as caught, client.score_stream(**which):
            pass
        assert caught.value.code == code
    with pytest.raises(RuntimeError, match="with block"):
        client.score_stream(run=run).send(rollouts(1)[0])


def test_over_http_it_says_where_to_go(server):
    with (
        Client(server.urls["http"]) as client,
        pytest.raises(ValueError, match="grpc://"),
    ):
        client.score_stream()
    with pytest.raises(ValueError, match="grpc://"):
        AsyncClient(server.urls["http"]).score_stream()


def test_a_client_that_leaves_in_the_middle(client, run, budget):
    """Leaving the block cancels; the fixture sees that nothing stays reserved."""
    with client.score_stream(run=run) as stream:
        for sample in rollouts(30):
            stream.send(sample)
    with pytest.raises(StreamFailed, match="closed") as caught:
        list(stream)
    assert caught.value.pending == stream.pending


@pytest.fixture
def proxy(server):
    made = Proxy(server.urls["grpc"])
    yield made
    made.cut()


@pytest.fixture
def only_first(server, monkeypatch):
    """All samples but one, named `first`, wait in the engine for ever."""
    real = server.parts.application.open_scoring

    async def open_scoring(name, request):
        session = await real(name, request)
        score = session.score

        async def stuck(sample):
            if sample.id != "first":
                await asyncio.Event().wait()
            return await score(sample)

        session.score = stuck
        return session

    monkeypatch.setattr(server.parts.application, "open_scoring", open_scoring)


NAMES = ["second", "first", "third"]


def check_lost(error):
    assert [sample.id for sample in error.pending] == ["second", "third"]
    assert isinstance(error.__cause__, ConnectError)
    assert "2 samples of the stream have no answer" in str(error)


def test_a_lost_connection_lists_what_has_no_answer(proxy, only_first):
    batch = [Sample(name, "p", "r") for name in NAMES]
    with Client(proxy.url) as client, client.score_stream() as stream:
        for sample in batch:
            stream.send(sample)
        assert next(stream).id == "first"
        proxy.cut()
        with pytest.raises(StreamFailed) as caught:
            list(stream)
        check_lost(caught.value)
        assert pickle.loads(pickle.dumps(caught.value)).pending[0].id == "second"
        with pytest.raises(StreamFailed):
            stream.send(Sample("z", "p", "r"))


def test_a_lost_connection_under_asyncio(proxy, only_first):
    async def main():
        async with AsyncClient(proxy.url) as client, client.score_stream() as stream:
            for name in NAMES:
                await stream.send(Sample(name, "p", "r"))
            assert (await anext(stream)).id == "first"
            proxy.cut()
            with pytest.raises(StreamFailed) as caught:
                [_ async for _ in stream]
            check_lost(caught.value)
            with pytest.raises(StreamFailed):
                await stream.send(Sample("z", "p", "r"))

    asyncio.run(main())


def test_a_server_that_falls_silent(server, only_first):
    with Client(server.urls["grpc"], timeout=0.3) as client, client.score_stream() as stream:
        time.sleep(0.5)  # nobody waits for anything: no silence is too long
        stream.send(Sample("second", "p", "r"))
        with pytest.raises(StreamFailed) as caught:
            next(stream)
        assert isinstance(caught.value.__cause__, DeadlineError)

    async def main():
        async with (
            AsyncClient(server.urls["grpc"], timeout=0.3) as client,
            client.score_stream() as stream,
        ):
            await asyncio.sleep(0.5)
            await stream.send(Sample("second", "p", "r"))
            with pytest.raises(StreamFailed) as caught:
                await anext(stream)
            assert isinstance(caught.value.__cause__, DeadlineError)

    asyncio.run(main())


# ------------------------------------------------------------------ a client of one's own


def test_chunks_of_all_samples_in_turns_and_samples_out_of_order(client, run):
    batch, raw = rollouts(6), Raw(client, run)
    data = {sample.id: raw.announce(sample) for sample in batch}
    for at in range(0, max(len(one) for one in data.values()), 100):
        for name, one in reversed(data.items()):
            if one[at : at + 100]:
                raw.chunk(name, one[at : at + 100])
    found = raw.answers()
    assert [found[s.id].reward for s in batch] == client.score(batch, run=run).rewards


def test_what_lies_about_its_bytes(client, run):
    good, raw = rollouts(1, seed=9)[0], Raw(client, run)
    small = states(5, tokens=4)

    def bad(name):
        return Sample(name, "p", "r", small)

    data = raw.announce(bad("cut"))
    raw.chunk("cut", data[:-1])
    data = raw.announce(bad("twice"))
    raw.chunk("twice", data[:100])
    raw.chunk("twice", data)
    raw.announce(bad("nothing"))
    data = raw.announce(bad("dtype"), dtype="float64")
    raw.chunk("dtype", data)
    raw.announce(bad("huge"), shape=[2**31 - 1, WIDTH_P])
    raw.chunk("huge", data)
    raw.announce(bad("negative"), shape=[-4, WIDTH_P])
    data = raw.announce(good)
    raw.chunk(good.id, data)
    found = raw.answers()
    assert {name: one.error.code for name, one in found.items() if name != good.id} == {
        "cut": "feedback_size",
        "twice": "feedback_size",
        "nothing": "feedback_size",
        "dtype": "feedback_dtype",
        "huge": "too_large",
        "negative": "feedback_shape",
    }
    assert found[good.id].reward == client.score([good], run=run).rewards[0]


def test_an_idle_upload_expires_alone(client, run):
    good, raw = rollouts(1)[0], Raw(client, run)
    late = raw.announce(Sample("late", "p", "r", states(7)))
    raw.chunk("late", late[:4])
    raw.pause(1.5 * IDLE)
    raw.chunk("late", late[4:])
    raw.chunk(good.id, raw.announce(good))
    found = raw.answers()
    assert found["late"].error.code == "deadline_exceeded"
    assert found[good.id].reward == client.score([good], run=run).rewards[0]
