"""Invariant 1: a reward is a function of the head's version, the text and the feedback alone.

Whatever else is asked for at the same time, whatever has happened to the run since, whichever
transport, cache or server answers: a kept version gives the same reward.
"""

import contextlib
import random

import numpy as np
import pytest
from support.rollouts import WIDTH_P, groups, samples
from support.serving import running

from r2m_client import Client

METHOD = {"width": 16, "learning_rate": 1e-3}
RAMP = {"omega": {"kind": "ramp", "steps": 4, "floor": 0.5}}
"""Heads of one run differ in ω too."""
STEPS = 4


@pytest.fixture(scope="module")
def asked():
    return [one for seed in range(5) for one in samples(seed, group=f"s{seed}")]


def trained(client, run):
    client.create_run(run, policy_hidden_size=WIDTH_P, method={**METHOD, **RAMP})
    for step in range(1, STEPS + 1):
        assert client.align(run, step=step, groups=groups(step)).accepted


def same(found, expected, bound):
    """Bound: of the rewards' spread."""
    found, expected = np.array(found), np.array(expected)
    return np.abs(found - expected).max() <= bound * expected.std()


@contextlib.contextmanager
def clients(server):
    with (
        Client(server.urls["http"], wire_dtype="float32", retries=0) as http,
        Client(server.urls["grpc"], wire_dtype="float32", retries=0) as grpc,
    ):
        yield http, grpc


@pytest.mark.parametrize(("deterministic", "bound"), [(True, 0.0), (False, 1e-5)])
def test_a_kept_version_gives_the_same_reward_whatever_has_happened(
    reward_model, backbone, tmp_path, asked, deterministic, bound
):
    draw = random.Random(1)
    first = {}

    def ask(client, run="r"):
        for number, rewards in first.items():
            order = draw.sample(range(len(asked)), draw.randint(1, len(asked)))
            answer = client.score([asked[n] for n in order], run=run, head=number)
            assert answer.head == number
            assert same(answer.rewards, [rewards[n] for n in order], bound), number

    def opened(**changes):
        return running(
            reward_model, tmp_path, backbone=backbone, deterministic=deterministic, **changes
        )

    with opened() as server, clients(server) as (http, grpc):
        trained(http, "r")
        for number in range(STEPS + 1):
            first[number] = grpc.score(asked, run="r", head=number).rewards
        assert len({tuple(rewards) for rewards in first.values()}) == STEPS + 1
        # Another run of the same weights at first, and of others later.
        trained(grpc, "other")
        for client in (http, grpc):
            ask(client)
        # What moves live, the reference, the settings: none of it moves a version's reward.
        http.set_alias("r", "reference", 2)
        http.update_run("r", {"alpha": 0.9, "kl_weight": 0.0})
        http.rollback("r", to=2)
        for step in (3, 4):
            grpc.align("r", step=step, groups=groups(50 + step))
        for client in (http, grpc):
            ask(client)
        with grpc.score_stream(run="r", head=3) as stream:
            for one in asked:
                stream.send(one)
            stream.finish()
            streamed = {score.id: score.reward for score in stream}
        assert same([streamed[one.id] for one in asked], first[3], bound)
    # Nothing is cached, and nothing is left of the process that answered first.
    with opened(cache_bytes=0, head_cache_bytes=0) as server, clients(server) as (http, grpc):
        for client in (http, grpc, http):
            ask(client)


def test_an_answer_names_what_it_is_a_function_of(server, client, run_name):
    trained(client, run_name)
    by_number = client.score(samples(1), run=run_name, head=2)
    assert (by_number.head, by_number.branch, by_number.fingerprint) == (
        2, "main", server.parts.engine.info.fingerprint,
    )  # fmt: skip
    assert by_number.omega == client.head(run_name, 2).omega
    by_step = client.score(samples(1), run=run_name, step=3)
    assert (by_step.head, by_step.rewards) == (2, by_number.rewards)
    live = client.score(samples(1), run=run_name)
    assert live.head == STEPS
    # By the ω that is told, not by another head's.
    zero = client.score(samples(1), run=run_name, head=0)
    assert zero.omega != by_number.omega != live.omega
    vanilla = [one.vanilla_reward for one in zero.scores]
    assert zero.rewards == pytest.approx([zero.omega * one for one in vanilla], abs=1e-5)
