"""The fake from outside: what a user's test does with it."""

import asyncio
import dataclasses
import inspect
import math
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from r2m import int8
from r2m.errors import TABLE, Code
from r2m.tensors import TensorValue, tensor_value
from r2m_client import (
    AsyncClient,
    Client,
    ConnectError,
    Group,
    InvalidRequest,
    Label,
    NotFound,
    Overloaded,
    R2MError,
    Retry,
    Sample,
    ServerError,
    StepConflict,
    StreamFailed,
)
from r2m_client._errors import CLASSES
from r2m_client.testing import FakeServer
from r2m_client.testing._server import METHODS

WIDTH = 4
METHOD = {"width": 8}


def length(sample, head):
    return float(len(sample.response) + head)


def sample(name="a", response="r", **changes):
    return Sample(name, "p", response, np.ones((3, WIDTH), np.float32), **changes)


def group(name="g", count=3, start=1):
    return Group(name, [sample(f"{name}{n}", "r" * (start + n)) for n in range(count)])


@pytest.fixture
def fake():
    return FakeServer(length)


@pytest.fixture
def client(fake):
    with fake.client() as one:
        one.create_run("mine", policy_hidden_size=WIDTH, method=METHOD)
        fake.calls.clear()
        yield one


# ------------------------------------------------------------------ what it is


def test_the_example_of_the_documentation_runs(tmp_path):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "testing.md").read_text()
    (code,) = re.findall(r"<!-- example: testing -->\n```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "test_example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-W", "error", str(tmp_path)],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_nothing_heavy_is_loaded_and_no_thread_started():
    code = """
import socket, sys, threading
import numpy as np
from r2m_client import Group, Sample
from r2m_client.testing import FakeServer
socket.socket = None  # who opens one fails
with FakeServer(lambda sample, head: len(sample.response)).client() as client:
    client.create_run("mine", policy_hidden_size=4, method={"width": 2})
    samples = [Sample(str(n), "p", "r" * n, np.ones((2, 4))) for n in (1, 2, 3)]
    assert client.score(samples, run="mine").rewards == [1, 2, 3]
    assert client.align("mine", step=1, groups=[Group("g", samples)]).head == 1
    assert len(client.head_weights("mine")) == client.head("mine", 1).bytes
heavy = {"torch", "transformers", "httpx", "grpc", "google.protobuf", "r2m_service"}
print(threading.active_count(), *sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["1"]


def test_its_clients_are_the_real_ones(fake):
    assert isinstance(fake.client(), Client)
    assert isinstance(fake.async_client(), AsyncClient)


# A stream's samples arrive as scores, as do those of futures; a freeze is an update.
NOT_RECORDED = {"score_stream", "score_async", "freeze", "unfreeze"}


def test_it_knows_the_clients_calls():
    public = {
        name
        for name, _ in inspect.getmembers(Client, inspect.isfunction)
        if not name.startswith("_") and name != "close"
    }
    assert public - METHODS == NOT_RECORDED
    assert public >= METHODS


def test_a_text_in_any_of_its_forms(client):
    def told(sample, head):
        if sample.messages:
            return float(len(sample.messages))
        return float(len(sample.token_ids or sample.response))

    client = FakeServer(told, max_length=6).client()
    turns = [{"role": "user", "content": "p q"}, {"role": "assistant", "content": "r"}]
    tools = [{"type": "function"}]
    batch = [
        Sample("m", messages=turns, tools=tools),
        Sample("i", token_ids=[5, 6, 7]),
        Sample("p", "p", "r s"),
    ]
    scores = client.score(batch).scores
    assert [(one.reward, one.tokens) for one in scores] == [(2, 3), (3, 3), (3, 3)]
    long = Sample("l", token_ids=range(9))
    assert client.score([long]).scores[0].error.code == "text_too_long"
    for side in ("left", "right"):
        client.create_run(side, feedback="none", truncation=side, method=METHOD)
        (score,) = client.score([long], run=side).scores
        assert (score.error, score.tokens, score.truncated) == (None, 6, 3)
    with pytest.raises(InvalidRequest, match="must be 'none', 'left', 'right' or ''"):
        client.create_run("cut", feedback="none", truncation="middle")


def test_a_score_stream(fake, client):
    client.align("mine", step=1, groups=[group()])
    with client.score_stream(run="mine") as stream:
        assert (stream.opened.run, stream.opened.head) == ("mine", 1)
        client.align("mine", step=2, groups=[group()])
        stream.send(sample("a", "rrr"))
        stream.send(Sample("b", "p", "r"))
        stream.send(Sample("c", "p", "r", np.ones((1, WIDTH)), finish_reason="x" * 101))
        stream.finish()
        scores = {one.id: one for one in stream}
    assert scores["a"].reward == 4.0  # by the head that it opened with
    assert [scores[name].error.code for name in "bc"] == ["feedback_missing", "invalid_request"]
    with pytest.raises(NotFound), client.score_stream(run="nobody"):
        pass
    with client.score_stream() as vanilla:
        vanilla.send(Sample("v", "p", "rr"))
        assert next(vanilla).reward == 2.0
    fake.lose_next(method="score")
    fake.fail_next("overloaded", method="score")
    with client.score_stream(run="mine") as stream:
        fake.lose_next(method="score")
        stream.send(sample("a"))
        with pytest.raises(StreamFailed) as caught:
            next(stream)
    assert [one.id for one in caught.value.pending] == ["a"]


def test_an_asyncio_score_stream(fake, client):
    async def scored():
        async with fake.async_client() as asking, asking.score_stream(run="mine") as stream:
            for name in "ab":
                await stream.send(sample(name))
            await stream.finish()
            return [one.reward async for one in stream]

    assert asyncio.run(scored()) == [1.0, 1.0]


def test_advice_is_the_tests(client):
    advice = {"mine": "ok"}
    fake = FakeServer(length, advice=advice.__getitem__)
    client = fake.client()
    client.create_run("mine", policy_hidden_size=WIDTH, method={**METHOD, "audit_rate": 1})
    for said in ("ok", "warn", "stop"):
        advice["mine"] = said
        scored = client.score([sample(said)], run="mine")
        labelled = client.add_labels("mine", [Label(id=said, grade=1.0)])
        step = client.run("mine").next_step
        aligned = client.align("mine", step=step, groups=[])
        asked = (scored, labelled, aligned, client.run("mine"), client.runs()[0])
        assert {one.advice for one in asked} == {said}
    with pytest.raises(ValueError, match="'panic' is not one of ok, warn, stop"):
        FakeServer(length, advice="panic")


def test_rejections_freeze_and_people_lift_it(client):
    fake = FakeServer(length, verdict="rejected")
    client = fake.client()
    client.create_run(
        "mine", policy_hidden_size=WIDTH, method={**METHOD, "gate": {"freeze_after": 2}}
    )
    for step in (1, 2, 3):
        answer = client.align("mine", step=step, groups=[group()])
    assert answer.verdict == "frozen"
    assert "2 candidates in a row" in client.run("mine").frozen == answer.reason
    lifted = client.unfreeze("mine", reason="seen")
    assert (lifted.frozen, lifted.rejections) == (None, 0)
    assert client.align("mine", step=4, groups=[group()]).verdict == "rejected"
    assert [one.what for one in client.changes("mine")] == ["created", "frozen", "unfrozen"]


def test_a_closed_client(fake):
    with fake.client() as client:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        client.runs()

    async def closed():
        async with fake.async_client() as client:
            assert await client.runs() == []
        await client.runs()

    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(closed())


def test_all_clients_of_a_fake_see_the_same_runs(fake, client):
    async def main():
        async with fake.async_client() as other:
            batch = [sample(str(n), "r" * n) for n in range(1, 5)]
            found = await asyncio.gather(*(other.score([s], run="mine") for s in batch))
            answer = await other.align("mine", step=1, groups=[group()])
            return [one.rewards for one in found], answer

    rewards, answer = asyncio.run(main())
    assert rewards == [[1.0], [2.0], [3.0], [4.0]]
    assert client.align("mine", step=1, groups=[group()]) == answer
    assert client.run("mine").head == 1


def test_threads_share_a_client(client):
    with ThreadPoolExecutor(4) as pool:
        steps = list(pool.map(lambda _: client.align("mine", step=1, groups=[group()]), range(20)))
    assert all(one == steps[0] for one in steps)
    assert client.run("mine").step == 1


def test_bytes_are_counted(fake):
    client = fake.client()
    client.create_run("mine", policy_hidden_size=WIDTH, method=METHOD)
    before = client.bytes_sent, client.bytes_received
    client.score([Sample("a", "p", "r", np.ones((1000, WIDTH)))], run="mine")
    assert 0 < client.bytes_sent - before[0] - 1000 * WIDTH * 2 < 1000
    assert client.bytes_received - before[1] > 100


# ------------------------------------------------------------------ what the functions get


@pytest.mark.parametrize("wire_dtype", ["bfloat16", "float16", "float32", "int8"])
def test_the_reward_sees_what_was_sent(wire_dtype):
    seen = []

    def reward(given, head):
        seen.append((given, head))
        return 1.0

    client = FakeServer(reward).client(wire_dtype=wire_dtype)
    client.create_run("mine", policy_hidden_size=WIDTH, hidden_state="pre_norm", method=METHOD)
    states = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)
    sent = Sample(
        "a", "ask", "say", states, "raw", "g", hidden_state="pre_norm", last_token=True, tokens=3
    )
    client.score([sent], run="mine")
    (given, head) = seen[-1]
    for name in ("id", "prompt", "response", "format", "group", "hidden_state", "tokens"):
        assert getattr(given, name) == getattr(sent, name)
    assert head == 0
    assert given.hidden_states.dtype == np.float32
    if wire_dtype == "int8":
        sent_as = tensor_value(states, dtype="int8")
        expected = int8.decode(sent_as.data, sent_as.shape)
    else:
        expected = torch.from_numpy(states).to(getattr(torch, wire_dtype)).float().numpy()
    assert np.array_equal(given.hidden_states, expected)
    given.hidden_states[:] = 7  # its own: changing it harms nobody
    assert not (states == 7).any()


def test_without_hidden_states_the_reward_gets_none(fake):
    client = FakeServer(lambda one, head: float(one.hidden_states is None)).client()
    client.create_run("own", feedback="backbone", method=METHOD)
    assert client.score([Sample("a", "p", "r")], run="own").rewards == [1.0]
    assert client.score([Sample("a", "p", "r")]).rewards == [1.0]


def test_the_vanilla_reward_is_a_function_of_its_own_or_version_0s():
    for vanilla, expected in ((None, 1.0), (lambda one: 9.0, 9.0)):
        client = FakeServer(length, vanilla=vanilla).client()
        client.create_run("mine", policy_hidden_size=WIDTH, method=METHOD)
        client.align("mine", step=1, groups=[group()])
        (score,) = client.score([sample()], run="mine").scores
        assert (score.reward, score.vanilla_reward) == (2.0, expected)
        assert client.score([Sample("a", "p", "r")]).rewards == [expected]


def test_rewards_are_those_of_the_head_that_is_asked(client):
    for step in (1, 2):
        client.align("mine", step=step, groups=[group()])
    client.set_alias("mine", "best", 1)
    heads = ["live", 0, "best", "previous", 2]
    found = [client.score([sample()], run="mine", head=head) for head in heads]
    assert [one.head for one in found] == [2, 0, 1, 1, 2]
    assert [one.rewards for one in found] == [[3.0], [1.0], [2.0], [2.0], [3.0]]


def test_a_run_counts_what_was_done_for_it(client):
    assert client.run("mine").live == {"verdict": "accepted", "t": 0}
    client.score([sample("a", "one two"), sample("b", "\ud83d"), Sample("c", "p", "r")], run="mine")
    client.score([sample("a")])  # of no run
    for _ in range(2):
        client.align("mine", step=1, groups=[group()])
    run = client.run("mine")
    used = run.usage
    assert (used.samples, used.failed, used.tokens, used.aligns) == (3, 2, 3, 1)
    assert used.feedback_bytes == (1 + 3) * 3 * WIDTH * 2  # one sample's, then a group's
    assert (run.live["t"], run.live["groups"]["used"]) == (1, 1)
    assert client.runs()[0].usage is None


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_a_reward_that_is_no_number_is_its_samples_error(wrong):
    client = FakeServer(lambda one, head: wrong if one.response == "bad" else 1.0).client()
    client.create_run("mine", policy_hidden_size=WIDTH, method=METHOD)
    answer = client.score([sample("a"), sample("b", "bad")], run="mine")
    assert [one.error and one.error.code for one in answer.scores] == [None, "reward_not_finite"]
    aligned = client.align("mine", step=1, groups=[Group("g", [sample("a"), sample("b", "bad")])])
    assert aligned.groups.skipped_because == {"error": 1}
    assert [(one.id, one.error.code) for one in aligned.errors] == [("b", "reward_not_finite")]


def test_what_the_functions_raise_reaches_the_test_and_changes_nothing():
    class OopsError(Exception):
        pass

    def oops(*_):
        raise OopsError

    for fake in (FakeServer(oops), FakeServer(length, verdict=oops)):
        client = fake.client()
        client.create_run("mine", policy_hidden_size=WIDTH, method=METHOD)
        before = client.run("mine")
        with pytest.raises(OopsError):
            client.align("mine", step=1, groups=[group()])
        assert client.run("mine") == before
        assert len(client.heads("mine")) == 1


def test_tokens_are_words_unless_somebody_counts():
    long = sample(response="one two three")
    for settings, good in (
        ({"max_length": 4}, True),
        ({"max_length": 3}, False),
        ({"max_length": 15, "count_tokens": len}, True),
        ({"max_length": 14, "count_tokens": len}, False),
    ):
        client = FakeServer(length, **settings).client()
        client.create_run("mine", policy_hidden_size=WIDTH, method=METHOD)
        (score,) = client.score([long], run="mine").scores
        assert (score.error is None) is good, settings
        if score.error is not None:
            assert score.error.code == "text_too_long"
            assert f"at most {settings['max_length']}" in score.error.message


def test_states_of_a_dtype_that_does_not_travel(client):
    """The client refuses them; what gets past it by its own class is refused as by a server."""
    with pytest.raises(ValueError, match="bytes"):
        client.score([Sample("a", "p", "r", TensorValue("float32", (1, WIDTH), b"1"))], run="mine")
    empty = client.score([Sample("a", "p", "r", np.zeros((0, WIDTH)))], run="mine")
    assert empty.scores[0].error.code == "feedback_shape"


# ------------------------------------------------------------------ verdicts


@pytest.mark.parametrize("verdict", ["accepted", "rejected", "undecided", "skipped", "frozen"])
@pytest.mark.parametrize(
    "gate",
    [
        {},
        {"rank_correlation_min": None},
        {"rank_correlation_min": None, "spread_max": None},
        {"rank_correlation_min": None, "spread_max": None, "spread_min": None},
    ],
    ids=str,
)
def test_verdicts(verdict, gate):
    client = FakeServer(length, verdict=verdict).client()
    client.create_run("mine", policy_hidden_size=WIDTH, method={**METHOD, "gate": gate})
    answer = client.align("mine", step=1, groups=[group()])
    candidate = None if verdict in ("skipped", "frozen") else 1
    left_out = verdict in ("skipped", "frozen")
    accepted = verdict == "accepted"
    assert (answer.verdict, answer.accepted, answer.candidate) == (verdict, accepted, candidate)
    assert answer.head == (1 if accepted else 0)
    assert answer.reason
    assert (answer.groups.used, answer.groups.skipped) == ((0, 1) if left_out else (1, 0))
    assert len(client.heads("mine")) == (1 if candidate is None else 2)
    assert (answer.drift is not None) == (candidate is not None and gate.get("spread_min", 1) == 1)
    run = client.run("mine")
    assert (run.step, run.head, run.aliases["live"]) == (1, answer.head, answer.head)
    if verdict in ("rejected", "undecided"):
        assert client.head("mine", 1).verdict == verdict
        assert run.aliases["candidate"] == 1
        with pytest.raises(ServerError, match=f"was {verdict}"):
            client.rollback("mine", to=1)


def test_a_verdict_by_function_sees_the_groups_that_count():
    seen = []

    def verdict(step, groups):
        seen.append((step, [(one.id, len(one.samples), one.preferred) for one in groups]))
        return "accepted" if step == 2 else "rejected"

    client = FakeServer(length, verdict=verdict).client()
    client.create_run("mine", policy_hidden_size=WIDTH, method=METHOD)
    labelled = Group("l", group("l").samples, preferred=("l0", "l1"))
    twins = Group("t", [sample("t0"), sample("t1")])
    groups = [group("g"), Group("single", [sample("s")]), twins, labelled]
    answers = [client.align("mine", step=step, groups=groups) for step in (1, 2)]
    assert [one.verdict for one in answers] == ["rejected", "accepted"]
    assert seen == [(n, [("g", 3, None), ("l", 3, ["l0", "l1"])]) for n in (1, 2)]
    assert (answers[1].groups.pseudo, answers[1].groups.labelled) == (1, 1)
    assert client.align("mine", step=3, groups=[]).verdict == "skipped"
    assert len(seen) == 2  # nobody is asked where there is nothing to judge


def test_a_run_s_controls():
    """Each pair is asked once; the control is the vanilla reward, and nothing is ever decided."""
    client = FakeServer(
        lambda s, _: -float(len(s.response)), vanilla=lambda s: float(len(s.response))
    ).client()
    client.create_run("mine", policy_hidden_size=WIDTH, method={**METHOD, "controls": ["none"]})
    group = Group(
        "g", [sample("a", "no"), sample("b", "longer"), sample("c", "s")], preferred=("b", "a")
    )
    turned = dataclasses.replace(group, preferred=("a", "b"))
    other = dataclasses.replace(group, preferred=("c", "a"))
    for step, sent, fresh, pairs in ((1, group, 1, 1), (2, turned, 0, 1), (3, other, 1, 2)):
        (arm,) = client.align("mine", step=step, groups=[sent]).controls.arms
        assert (arm.control, arm.verdict) == ("none", "too_few_pairs")
        assert (arm.pairs, arm.total.pairs) == (fresh, pairs)
    total = arm.total
    assert (total.head_accuracy, total.accuracy, total.difference) == (0.5, 0.5, 0.0)
    assert (total.low, total.high, total.discordant) == (-1.0, 1.0, 2.0)
    assert total.bt == pytest.approx(np.logaddexp(0, [-4, 1]).mean())
    with pytest.raises(InvalidRequest, match="judged by outside labels"):
        client.update_run("mine", {"labels": "pseudo"})
    client.rollback("mine", to=2)
    (arm,) = client.align("mine", step=3, groups=[other], branch="b1").controls.arms
    assert (arm.pairs, arm.total.pairs) == (1, 2)


def test_controls_of_states_that_stay_here():
    client = FakeServer(length).client()
    client.create_run(
        "mine", policy_hidden_size=WIDTH, method={**METHOD, "controls": ["shuffled", "none"]}
    )
    sent = dataclasses.replace(group(), preferred=("g0", "g1"))
    scored = client.score(sent.samples, run="mine", feedback="split")
    answer = client.align("mine", step=1, groups=[sent], feedback="split", context=scored.context)
    out, none = answer.controls.arms
    assert (out.verdict, out.pairs, out.moved) == ("not_available", 0, False)
    assert "stay with the trainer" in out.note
    assert (none.pairs, none.total.pairs, none.moved) == (1, 1, True)
    assert client.run("mine").live["controls"]["arms"][0]["total"] == {
        "pairs": 0,
        "discordant": 0.0,
    }


def test_verdicts_that_are_none():
    with pytest.raises(ValueError, match="'maybe' is not one of accepted, rejected"):
        FakeServer(length, verdict="maybe")
    client = FakeServer(length, verdict=lambda step, groups: "maybe").client()
    client.create_run("mine", policy_hidden_size=WIDTH, method=METHOD)
    with pytest.raises(ValueError, match="'maybe' is not one of"):
        client.align("mine", step=1, groups=[group()])


# ------------------------------------------------------------------ exactly once


def test_a_step_is_answered_once_by_its_content(fake, client):
    first = client.align("mine", step=1, groups=[group()])
    calls = len(fake.calls)
    assert client.align("mine", step=1, groups=[group()]) == first
    same = [Group("g", [Sample(s.id, s.prompt, s.response, torch.ones(3, WIDTH).bfloat16())
                        for s in group().samples])]  # fmt: skip
    assert client.align("mine", step=1, groups=same) == first
    assert len(fake.calls) == calls + 2
    assert [one.head for one in client.heads("mine")] == [0, 1]

    text, label, states, dtype, stated = (group() for _ in range(5))
    text.samples[0] = sample("g0", "other")
    label = Group("g", group().samples, preferred=("g0", "g1"))
    states.samples[0] = Sample("g0", "p", "r", np.zeros((3, WIDTH)))
    dtype.samples[0] = Sample("g0", "p", "r", np.ones((3, WIDTH), np.float16))
    stated.samples[0] = sample("g0", tokens=3)
    fewer = group(count=2)
    for other in (text, label, states, dtype, stated, fewer):
        with pytest.raises(StepConflict):
            client.align("mine", step=1, groups=[other])
    assert client.run("mine").step == 1


def test_an_answer_that_got_lost_is_given_to_the_repeat(fake, client):
    fake.lose_next(method="align")
    answer = client.align("mine", step=1, groups=[group()])
    assert answer.head == 1
    assert [one.method for one in fake.calls] == ["align", "align"]
    assert client.run("mine").step == 1
    # What is not safe to repeat is not repeated, and was done all the same.
    fake.lose_next()
    with pytest.raises(ConnectError) as caught:
        client.rollback("mine", to=0)
    assert caught.value.maybe_sent
    assert client.run("mine").branch == "b1"


def test_an_answer_is_not_the_fakes_own_state(fake, client):
    client.run("mine").method["width"] = 99
    client.run("mine").aliases["live"] = 99
    answer = client.align("mine", step=1, groups=[group()])
    answer.groups.skipped_because["gone"] = 9
    client.head("mine", 1).metrics["loss"].clear()
    assert client.run("mine").method["width"] == METHOD["width"]
    assert client.run("mine").aliases["live"] == 1
    assert client.align("mine", step=1, groups=[group()]).groups.skipped_because == {}
    assert client.head("mine", 1).metrics["loss"]


def test_progress_is_told_as_over_grpc(client):
    told = []
    groups = [group("a"), Group("b", [sample("b0"), Sample("b1", "p", "r")]), group("c")]
    client.align("mine", step=1, groups=groups, progress=told.append)
    assert [(now.groups_done, now.groups_total) for now in told] == [(0, 2), (1, 2), (2, 2)]
    assert [(one.id, one.because) for one in told[0].skipped] == [("b", "error")]
    assert [one.id for one in told[0].skipped[0].errors] == ["b1"]
    client.align("mine", step=1, groups=groups, progress=lambda _: told.append("again"))
    assert "again" not in told

    def stop(_):
        raise KeyError("enough")

    with pytest.raises(KeyError):
        client.align("mine", step=2, groups=[group()], progress=stop)
    assert client.run("mine").step == 2


# ------------------------------------------------------------------ failures on demand


@pytest.mark.parametrize("code", list(Code))
def test_every_error_of_the_table_can_be_had(fake, client, code):
    row = TABLE[code]
    fake.fail_next(code, times=2)
    patient = fake.client(retries=5)
    if row.retryable:
        assert patient.runs()
        assert [one.error for one in fake.calls] == [code, code, None]
        return
    with pytest.raises(CLASSES[code]) as caught:
        patient.runs()
    assert (caught.value.code, caught.value.status) == (code, row.http)
    assert [one.error for one in fake.calls] == [code]


def test_failures_outlast_a_client_that_gives_up(fake, client):
    fake.fail_next("overloaded", times=3)
    with pytest.raises(Overloaded, match="3 tries"):
        fake.client(retries=Retry(2)).runs()
    assert client.runs()


@pytest.mark.parametrize("is_async", [False, True])
def test_a_skipped_pause_counts_towards_the_timeout(fake, is_async):
    fake.fail_next("not_ready", times=10_000)
    with pytest.raises(ServerError, match=r"not_ready: .* \(\d+ tries in (59\.\d|60) s\)"):
        asyncio.run(fake.async_client().runs()) if is_async else fake.client().runs()
    assert 20 < len(fake.calls) < 200


def test_a_failure_for_one_method(fake, client):
    fake.fail_next("storage_failed", method="align")
    fake.fail_next("not_ready", times=2)
    impatient = fake.client(retries=0)
    with pytest.raises(ServerError, match="not_ready"):
        impatient.runs()
    with pytest.raises(ServerError, match="storage_failed"):
        impatient.align("mine", step=1, groups=[group()])
    with pytest.raises(ServerError, match="not_ready"):
        impatient.align("mine", step=1, groups=[group()])
    assert impatient.align("mine", step=1, groups=[group()]).head == 1


def test_a_failed_call_does_nothing(fake, client):
    fake.fail_next("compute_failed")
    with pytest.raises(ServerError):
        fake.client(retries=0).align("mine", step=1, groups=[group()])
    assert client.run("mine").step == 0


def test_the_pause_that_is_asked_for_is_seen_and_not_waited(fake, client, monkeypatch):
    def wait(seconds):
        raise AssertionError(f"waited {seconds} s")

    for kind in (Client, AsyncClient):
        monkeypatch.setattr(kind, "_sleep", staticmethod(wait))
    fake.fail_next("overloaded", times=2, retry_after=20)
    assert client.runs()
    fake.fail_next("overloaded", times=2, retry_after=20)
    assert asyncio.run(fake.async_client().runs())
    fake.fail_next("overloaded", retry_after=400)
    with pytest.raises(Overloaded) as caught:
        client.runs()  # longer than the call's timeout
    assert caught.value.retry_after == 400


def test_failures_that_are_none(fake):
    with pytest.raises(ValueError, match="'tired' is not a valid Code"):
        fake.fail_next("tired")
    with pytest.raises(ValueError, match="at least 1"):
        fake.fail_next("overloaded", times=0)
    with pytest.raises(ValueError, match="'aline' is not one of add_labels, align"):
        fake.lose_next(method="aline")
    assert fake.client().runs() == []


def test_another_backbone_is_a_mismatch(fake, client):
    fake.fingerprint = "another"
    assert client.server().fingerprint == "another"
    for call in (
        lambda: client.score([sample()], run="mine"),
        lambda: client.align("mine", step=1, groups=[]),
        lambda: client.create_run("mine", policy_hidden_size=WIDTH, method=METHOD),
        lambda: client.rollback("mine", to=0),
        lambda: client.archive_run("mine"),
        lambda: client.set_alias("mine", "a", 0),
    ):
        with pytest.raises(R2MError, match="backbone_mismatch"):
            call()
    assert client.run("mine").fingerprint != "another"
    assert client.heads("mine")


def test_calls_are_recorded(fake, client):
    client.score([sample()], run="mine", head=0)
    with pytest.raises(NotFound):
        client.head("mine", 7)
    score, head = fake.calls
    assert (score.method, head.method) == ("score", "head")
    assert (score.error, head.error) == (None, "unknown_head")
    assert (score.request["run"], score.request["head"]) == ("mine", "0")
    assert score.request["samples"][0]["feedback"] == {"dtype": "bfloat16", "shape": [3, WIDTH]}


# ------------------------------------------------------------------ heads


def test_a_head_is_a_file_of_the_right_shapes(client):
    client.align("mine", step=1, groups=[group()])
    files = [client.head_weights("mine", head) for head in (0, 1)]
    assert files[0] != files[1]
    info = client.head("mine", "live")
    assert info.bytes == len(files[1])
    assert {name: one.shape for name, one in load(files[1]).items()} == {
        "w_q": (32, 8), "w_k": (WIDTH, 8), "w_v": (WIDTH, 8), "w_o": (8, 32),
        "head.weight": (1, 32),
    }  # fmt: skip
    # The same data from the same parent gives the same weights, other data others.
    client.rollback("mine", to=0)
    client.align("mine", step=1, groups=[group()])
    client.rollback("mine", to=0)
    client.align("mine", step=1, groups=[group(start=5)])
    shas = [one.sha256 for one in client.heads("mine")]
    assert shas[1] == shas[2]
    assert len(set(shas)) == 3
