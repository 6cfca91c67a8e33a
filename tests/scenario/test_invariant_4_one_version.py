"""Invariant 4: a call is answered by one whole version, whatever becomes of live meanwhile.

That an align gives the device up between its groups is tested in tests/engine.
"""

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.rollouts import WIDTH_P, groups, samples
from support.serving import running

from r2m_client import Client, StepOutOfOrder

METHOD = {"width": 16, "learning_rate": 2e-3}
CALLS = 2000
CALLERS = 6


@pytest.fixture(scope="module")
def swapped(reward_model, backbone, tmp_path_factory):
    """A run whose live head moves while thousands of scores are in flight; what they saw."""
    run, sent = "swapped", samples(5, group="s", count=5)
    begun, seen = threading.Event(), []
    moved = [0]
    """The heads that scored step 1, 2, …: each is live when it is appended, or was just before."""

    def scores(url, number):
        draw = random.Random(number)
        with Client(url, wire_dtype="float32", retries=0) as client:
            for call in range(CALLS // CALLERS):
                if call == 3:
                    begun.set()
                batch = draw.sample(sent, draw.randint(2, 5))
                kind, before = draw.choice(["live", "live", "named", "step"]), len(moved)
                wanted = draw.randrange(before)
                if kind == "live":
                    answer = client.score(batch, run=run)
                elif kind == "named":
                    answer = client.score(batch, run=run, head=moved[wanted])
                else:
                    answer = client.score(batch, run=run, step=wanted + 1, branch="main")
                # The trainer hears of a new head a little after it is live.
                steps = (before - 1, len(moved) + 1) if kind == "live" else (wanted, wanted + 1)
                ids = [one.id for one in batch]
                seen.append((answer.head, slice(*steps), ids, answer.rewards))

    with (
        running(
            reward_model, tmp_path_factory.mktemp("state"), backbone=backbone, keep_every=1
        ) as server,
        Client(server.urls["grpc"], wire_dtype="float32", retries=0) as trainer,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        trainer.create_run(run, policy_hidden_size=WIDTH_P, method=METHOD)
        urls = list(server.urls.values())
        working = [pool.submit(scores, urls[number % 2], number) for number in range(CALLERS)]
        begun.wait(60)
        for step in itertools.count(1):
            if all(one.done() for one in working):
                break
            moved.append(trainer.align(run, step=step, groups=groups(step % 9, count=2)).head)
        for one in working:
            one.result()  # no call failed
        first = {}
        for number in set(moved):
            rewards = trainer.score(sent, run=run, head=number).rewards
            first[number] = dict(zip([one.id for one in sent], rewards, strict=True))
    return moved, seen, first


def test_scores_are_answered_by_what_was_live_or_named(swapped):
    moved, seen, _ = swapped
    assert len(seen) == CALLERS * (CALLS // CALLERS)
    assert len(set(moved)) > 5
    assert len({head for head, *_ in seen}) > 5
    for head, steps, *_ in seen:
        assert head in moved[steps]


def test_each_answer_is_of_the_one_whole_version_that_it_names(swapped):
    moved, seen, first = swapped
    spread = {head: max(of.values()) - min(of.values()) for head, of in first.items()}
    for head, _, ids, rewards in seen:
        for one, reward in zip(ids, rewards, strict=True):
            assert abs(reward - first[head][one]) <= 1e-5 * spread[head]
    # Versions differ by more than that, so that a mixed answer would show.
    for a, b in itertools.pairwise(sorted(set(moved))):
        assert max(abs(first[a][one] - first[b][one]) for one in first[a]) > 1e-4 * spread[a]


def test_a_step_is_scored_by_its_recorded_head_on_any_branch_at_any_time(client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    sent = samples(1)
    scored = {}
    for step in range(1, 5):
        scored["main", step] = client.score(sent, run=run_name, step=step, branch="main")
        client.align(run_name, step=step, groups=groups(step))
    client.rollback(run_name, to_step=2)
    for step in (3, 4):
        scored["b1", step] = client.score(sent, run=run_name, step=step, branch="b1")
        client.align(run_name, step=step, groups=groups(10 + step))
    assert scored["b1", 3].head == scored["main", 3].head
    assert scored["b1", 4].head != scored["main", 4].head
    for (branch, step), before in scored.items():
        again = client.score(sent, run=run_name, step=step, branch=branch)
        assert (again.head, again.branch) == (before.head, branch)
        assert again.rewards == pytest.approx(before.rewards, abs=1e-6)
    with pytest.raises(StepOutOfOrder):
        client.score(sent, run=run_name, step=6, branch="b1")
