"""Invariant 2: align is exactly-once for (run, branch, step), whatever way a request comes in."""

import base64
import dataclasses
import threading
from datetime import UTC, datetime

import httpx
import numpy as np
import pytest
from support.rollouts import WIDTH_P, groups
from support.serving import running

from r2m.errors import Code, Problem
from r2m_client import (
    AlignConflict,
    Client,
    Group,
    R2MError,
    ServerError,
    StepConflict,
    StepOutOfOrder,
)
from r2m_service.domain.runs import StepCommit

METHOD = {"width": 16, "learning_rate": 3e-4}


def as_json(run, step, sent):
    """The same content as plain JSON with base64, by hand."""
    return {
        "step": step,
        "groups": [
            {
                "id": group.id,
                "samples": [
                    {
                        "id": one.id,
                        "prompt": one.prompt,
                        "response": one.response,
                        "feedback": {
                            "dtype": "float32",
                            "shape": list(one.hidden_states.shape),
                            "data": base64.b64encode(one.hidden_states.tobytes()).decode(),
                        },
                    }
                    for one in group.samples
                ],
            }
            for group in sent
        ],
    }


@pytest.fixture
def both(server):
    with (
        Client(server.urls["http"], wire_dtype="float32", retries=0) as http,
        Client(server.urls["grpc"], wire_dtype="float32", retries=0) as grpc,
    ):
        yield http, grpc


def test_a_retry_in_any_encoding_gets_the_first_answer(server, both, run_name):
    http, grpc = both
    http.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    address = f"{server.urls['http']}/v1/runs/{run_name}/align"
    ways = {
        "json": lambda step: httpx.post(address, json=as_json(run_name, step, groups(step))),
        "safetensors": lambda step: http.align(run_name, step=step, groups=groups(step)),
        "grpc": lambda step: grpc.align(run_name, step=step, groups=groups(step)),
    }
    for step, way in enumerate(ways, start=1):
        first = ways[way](step)
        for other in ways:
            again = ways[other](step)
            if isinstance(again, httpx.Response):
                assert again.status_code == 200, again.text
                again = again.json()
                mine = first.json() if isinstance(first, httpx.Response) else None
                assert again["head"] == step
                assert again == (mine or again)
            else:
                assert again.head == step
                assert isinstance(first, httpx.Response) or again == first
    assert [one.head for one in http.heads(run_name)] == [0, 1, 2, 3]


def changed(sent, change):
    first = sent[0]
    samples = [change(first.samples[0]), *first.samples[1:]]
    return [Group(first.id, samples), *sent[1:]]


def bit(sample):
    """One bit of one state of one token."""
    states = sample.hidden_states.copy()
    states.view(np.uint32)[1, 1] ^= 1
    return dataclasses.replace(sample, hidden_states=states)


OTHER = {
    "a bit": lambda sent: changed(sent, bit),
    "a text": lambda sent: changed(sent, lambda one: dataclasses.replace(one, response="Yes.")),
    "an id": lambda sent: changed(sent, lambda one: dataclasses.replace(one, id="x")),
    "a dtype": lambda sent: changed(
        sent, lambda one: dataclasses.replace(one, hidden_states=one.hidden_states.astype("f2"))
    ),
    "a shape": lambda sent: changed(
        sent, lambda one: dataclasses.replace(one, hidden_states=one.hidden_states[:-1])
    ),
    "a label": lambda sent: [
        dataclasses.replace(sent[0], preferred=("g0-0", "g0-1")), *sent[1:],
    ],
    "the order": lambda sent: sent[::-1],
    "a group less": lambda sent: sent[1:],
}  # fmt: skip


@pytest.mark.parametrize("what", list(OTHER))
def test_other_content_under_an_answered_step_is_refused(both, run_name, what):
    http, grpc = both
    http.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    first = http.align(run_name, step=1, groups=groups(1))
    for client in both:
        with pytest.raises(StepConflict, match="rollback with to_step"):
            client.align(run_name, step=1, groups=OTHER[what](groups(1)))
    assert grpc.align(run_name, step=1, groups=groups(1)) == first
    assert len(http.heads(run_name)) == 2


def test_a_step_out_of_order_is_refused_with_the_expected_one(both, run_name):
    http, grpc = both
    http.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    http.align(run_name, step=1, groups=groups(1))
    for client in both:
        with pytest.raises(StepOutOfOrder, match="expects step 2, got 4"):
            client.align(run_name, step=4, groups=groups(4))
    grpc.rollback(run_name, to_step=0)
    with pytest.raises(StepOutOfOrder, match="expects step 1, got 2"):
        http.align(run_name, step=2, groups=groups(2))
    with pytest.raises(ServerError, match="branch_left"):
        http.align(run_name, step=2, groups=groups(2), branch="main")


def test_all_of_it_across_a_restart(reward_model, backbone, tmp_path):
    def opened():
        return running(reward_model, tmp_path, backbone=backbone)

    with opened() as server, Client(server.urls["http"], wire_dtype="float32") as client:
        client.create_run("r", policy_hidden_size=WIDTH_P, method=METHOD)
        answers = [client.align("r", step=step, groups=groups(step)) for step in (1, 2, 3)]
    with opened() as server, Client(server.urls["grpc"], wire_dtype="float32") as client:
        for answer in answers:
            assert client.align("r", step=answer.step, groups=groups(answer.step)) == answer
        with pytest.raises(StepConflict):
            client.align("r", step=2, groups=groups(9))
        with pytest.raises(StepOutOfOrder, match="expects step 4"):
            client.align("r", step=5, groups=groups(5))
        assert client.align("r", step=4, groups=groups(4)).parent == 3


def together(*calls):
    """What each of the calls gives or raises, all begun at once."""
    found, barrier = [None] * len(calls), threading.Barrier(len(calls))

    def run(place, call):
        barrier.wait()
        try:
            found[place] = call()
        except R2MError as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return found


def test_the_same_request_many_times_at_once_is_done_once(both, run_name):
    http = both[0]
    http.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    for step in (1, 2, 3):
        found = together(
            *[
                lambda client=client, step=step: client.align(
                    run_name, step=step, groups=groups(step)
                )
                for client in both * 3
            ]
        )
        assert all(one == found[0] for one in found)
        assert found[0].head == step
    assert len(http.heads(run_name)) == 4


def test_of_two_contents_at_once_one_wins(both, run_name):
    http, grpc = both
    http.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    found = together(
        lambda: http.align(run_name, step=1, groups=groups(1)),
        lambda: grpc.align(run_name, step=1, groups=groups(2)),
    )
    assert sum(isinstance(one, StepConflict) for one in found) == 1
    assert len(http.heads(run_name)) == 2


def rival(run, *, step=1, parent=0):
    """Another replica's commit."""
    return StepCommit(
        run=run, branch="main", step=step, parent=parent, live=parent, candidate=None,
        content_hash="rival", answer="{}", at=datetime.now(UTC),
    )  # fmt: skip


@pytest.mark.parametrize(("step", "parent"), [(2, 0), (3, 1), (1, 1)])
def test_a_commit_compares_the_step_and_the_parent_before_it_swaps(
    server, client, run_name, step, parent
):
    """The branch stands at step 1, and head 1 is live."""
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    client.align(run_name, step=1, groups=groups(1))
    before = client.run(run_name)
    with pytest.raises(Problem) as caught:
        server.parts.registry.commit_step(rival(run_name, step=step, parent=parent))
    assert caught.value.code == Code.ALIGN_CONFLICT
    after = client.run(run_name)
    assert (after.head, after.step, after.aliases) == (before.head, before.step, before.aliases)
    assert client.align(run_name, step=2, groups=groups(2)).parent == 1


def test_two_replicas_at_once_one_wins_and_the_other_may_try_again(
    server, both, run_name, monkeypatch
):
    """A commit that comes first, as another replica's, while this one computes."""
    http, grpc = both
    http.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    application, registry = server.parts.application, server.parts.registry
    engine = application._align._engine
    align, before = engine.align, threading.Event()

    async def beaten(*given):
        update = await align(*given)
        if not before.is_set():
            before.set()
            registry.commit_step(rival(run_name))
        return update

    monkeypatch.setattr(engine, "align", beaten)
    blobs = server.parts.retention._blobs
    files = set(blobs.sizes())
    with pytest.raises(AlignConflict) as caught:
        http.align(run_name, step=1, groups=groups(1))
    assert caught.value.retryable
    assert before.is_set()
    assert set(blobs.sizes()) == files  # the loser's files are gone
    state = http.run(run_name)
    assert (state.step, state.head) == (1, 0)
    with pytest.raises(StepConflict):
        http.align(run_name, step=1, groups=groups(1))
    assert grpc.align(run_name, step=2, groups=groups(2)).parent == 0
