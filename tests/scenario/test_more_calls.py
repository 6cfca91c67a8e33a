"""The Python client's calls beyond the main job, over both transports and the real server."""

import pytest
from support.rollouts import WIDTH_P, groups, samples, states

from r2m_client import InvalidRequest, Pair, Sample, StepOutOfOrder

METHOD = {"width": 16, "learning_rate": 3e-4}
TURNS = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add"}}]},
    {"role": "tool", "content": "4", "tool_call_id": "c1"},
    {"role": "assistant", "content": "It is 4."},
]


@pytest.fixture
def trained(client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    for step in (1, 2):
        assert client.align(run_name, step=step, groups=groups(step)).accepted
    return run_name


def test_conversations_ids_and_truncation(client, run_name, backbone):
    limit = backbone.text.max_length
    client.create_run(run_name, feedback="none", truncation="left")
    assert client.run(run_name).truncation == "left"
    answer = client.score(
        [
            Sample("turns", messages=TURNS, tools=[{"name": "add"}], finish_reason="stop"),
            Sample("ids", token_ids=[7] * (limit + 5)),
            Sample("none"),
        ],
        run=run_name,
    )
    turns, ids, none = answer.scores
    assert turns.error is None
    assert turns.finish_reason == "stop"
    assert (ids.tokens, ids.truncated) == (limit, 5)
    assert none.error.code == "text_empty"


def test_a_step_names_its_head(client, trained):
    assert client.score(samples(1), run=trained, step=1).head == 0
    assert client.score(samples(1), run=trained, step=3, branch="main").head == 2
    with pytest.raises(StepOutOfOrder):
        client.score(samples(1), run=trained, step=9)
    with pytest.raises(ValueError, match="of which run"):
        client.score(samples(1), step=1)


def test_settings_change_and_the_trail_says_so(client, trained):
    run = client.update_run(trained, {"kl_weight": 0.5}, reason="it holds too tight")
    assert run.method["kl_weight"] == 0.5
    with pytest.raises(InvalidRequest):
        client.update_run(trained, {"width": 4})
    trail = client.changes(trained)
    assert [one.what for one in trail] == ["created", "updated"]
    assert trail[1].detail == {"kl_weight": [1, 0.5]}
    assert (trail[1].reason, trail[1].caller) == ("it holds too tight", None)
    run = client.run(trained)
    assert run.usage.aligns == 2
    assert run.live["verdict"] == "accepted"


def test_heads_are_judged_on_pairs_with_hidden_states(client, trained):
    pairs = [
        Pair(
            f"p{n}",
            Sample(f"p{n}-a", "Hi", f"Good {n}. " * n, states(n)),
            Sample(f"p{n}-b", "Hi", f"Bad {n}.", states(100 + n)),
        )
        for n in range(1, 7)
    ]
    found = client.evaluate(trained, pairs, heads=["live", 0, 1, 2])
    assert found.pairs == 6
    assert [one.head for one in found.heads] == [2, 0, 1]
    # By hand: the same rewards from score.
    scores = client.score([s for p in pairs for s in (p.chosen, p.rejected)], run=trained).rewards
    right = sum(scores[2 * n] > scores[2 * n + 1] for n in range(6))
    assert found.heads[0].correct == right
    assert found.heads[0].better is None
    assert found.heads[1].accuracy == found.vanilla.accuracy
    assert found.heads[1].p_value is not None
    bad = Pair("bad", Sample("x", "Hi", "there"), Sample("y", "Hi", "you", states(1)))
    mixed = client.evaluate(trained, [*pairs, bad])
    assert mixed.pairs == 6
    assert [(e.id, e.group, e.error.code) for e in mixed.errors] == [
        ("x", "bad", "feedback_missing")
    ]
