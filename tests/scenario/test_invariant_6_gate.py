"""Invariant 6: no candidate goes live without its gate. The same harmful stream under `paper` and
under `guarded`: rewards that favour length teach themselves to favour it more."""

import dataclasses

import numpy as np
import pytest
from support.rollouts import PROMPTS, RESPONSES, WIDTH_P

from r2m_client import AnchorStates, Client, Group, Pair, Sample

STEPS, PAIRS, MARGIN = 8, 80, 0.1
RATE = 0.02
# One look a step on few pairs, so a wide margin and a loose level; the statistics themselves are
# tested by simulation (tests/domain/test_anchor_gate.py).
GATE = {
    "anchors_every": 1,
    "anchors_margin": MARGIN,
    "anchors_looks": STEPS,
    "anchors_alpha": 0.4,
    "freeze_after": None,
}
NO_DRIFT = {"spread_min": None, "spread_max": None, "rank_correlation_min": None}


def states_of(seed, words):
    """States that know how long the response is, as a policy's do."""
    found = np.random.default_rng(seed).standard_normal((6, WIDTH_P)).astype(np.float32)
    found[:, 0] += words - 4
    return found


def texts(count):
    return [
        Sample(
            f"t{n}",
            f"{PROMPTS[n % 3]} [{n // 7}]",
            " ".join([RESPONSES[n % 5], *(["so"] * (n % 7))]),
            states_of(n, n % 7),
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def stream(server):
    """Groups in which the reward favours length, and gold pairs in which the short one is right."""
    with Client(server.urls["http"], retries=0) as client:
        pool = texts(1400)
        bare = [dataclasses.replace(one, hidden_states=None) for one in pool]
        rewards = [one.vanilla_reward for one in client.score(bare).scores]
    long_wins, short_wins = [], []
    for a in range(0, len(pool), 7):
        for low, high in ((0, 5), (1, 6), (0, 6)):
            short, long = a + low, a + high
            found = long_wins if rewards[long] > rewards[short] else short_wins
            found.append((pool[short], pool[long]))
    assert len(short_wins) > PAIRS
    assert len(long_wins) > 8 * STEPS
    groups = [
        [
            Group(
                f"g{n}",
                [
                    dataclasses.replace(one, id=f"g{n}-{m}")
                    for m, one in enumerate(long_wins[8 * step + n])
                ],
            )
            for n in range(8)
        ]
        for step in range(STEPS)
    ]
    pairs = [
        Pair(
            f"p{n}",
            dataclasses.replace(short, id=f"p{n}-c"),
            dataclasses.replace(long, id=f"p{n}-r"),
        )
        for n, (short, long) in enumerate(short_wins[:PAIRS])
    ]
    return groups, pairs


def play(client, run, method, stream, *, anchors):
    """The live head's accuracy on the gold pairs after every step, and the verdicts."""
    groups, pairs = stream
    client.create_run(run, policy_hidden_size=WIDTH_P, method={"width": 16, **method})
    states = [
        AnchorStates(one.id, one.chosen.hidden_states, one.rejected.hidden_states) for one in pairs
    ]
    if anchors:
        texts_alone = [
            Pair(
                one.id,
                dataclasses.replace(one.chosen, hidden_states=None),
                dataclasses.replace(one.rejected, hidden_states=None),
            )
            for one in pairs
        ]
        client.put_anchors(run, texts_alone)
    served, verdicts = [client.evaluate(run, pairs).heads[0].accuracy], []
    for step, batch in enumerate(groups, start=1):
        answer = client.align(run, step=step, groups=batch, anchors=states if anchors else ())
        verdicts.append(answer.verdict)
        served.append(client.evaluate(run, pairs).heads[0].accuracy)
    return served, verdicts


def test_the_stream_does_harm_under_paper(client, run_name, stream):
    method = {
        "profile": "paper",
        "learning_rate": RATE,
        "omega": {"kind": "constant", "value": 0.6},
    }
    served, verdicts = play(client, run_name, method, stream, anchors=False)
    assert served[0] == 1.0
    assert min(served) < 1.0 - 3 * MARGIN, served
    assert set(verdicts) == {"accepted"}


@pytest.mark.parametrize("more", [{}, NO_DRIFT], ids=["whole gate", "anchors alone"])
def test_guarded_never_serves_a_head_below_the_margin(client, run_name, stream, more):
    method = {"learning_rate": RATE, "kl_weight": 0.0, "gate": {**GATE, **more}}
    served, verdicts = play(client, run_name, method, stream, anchors=True)
    assert min(served) >= 1.0 - MARGIN, (served, verdicts)
    assert verdicts.count("rejected") >= 3, verdicts
