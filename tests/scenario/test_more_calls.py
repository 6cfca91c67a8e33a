"""The Python client's calls beyond the main job, over both transports and the real server."""

import pytest
from support.rollouts import WIDTH_P, groups, samples, states

from r2m_client import Group, InvalidRequest, Label, Pair, RunExists, Sample, StepOutOfOrder

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


def empty_ones():
    """An empty response to the same prompt, in each form."""
    return [
        Sample("chat", "Hi", ""),
        Sample("raw", "Hi", "", format="raw"),
        Sample("turns", messages=[*TURNS[:-1], {"role": "assistant", "content": ""}]),
    ]


def test_an_empty_response_has_a_reward_unless_the_run_says_otherwise(client, run_name):
    assert client.server().empty_response == "score"
    settings = {"feedback": "none", "method": METHOD}
    made = client.create_run(f"{run_name}-1", **settings)
    assert made.empty_response == "score"
    client.create_run(f"{run_name}-2", **settings, empty_response="error")
    again = client.create_run(f"{run_name}-2", **settings)  # states nothing: it is the same run
    assert again.empty_response == "error"
    with pytest.raises(RunExists, match="another empty_response: it is 'error'"):
        client.create_run(f"{run_name}-2", **settings, empty_response="score")
    with pytest.raises(InvalidRequest, match="empty_response"):
        client.create_run(f"{run_name}-3", **settings, empty_response="skip")
    for run in (None, f"{run_name}-1"):
        assert len(client.score(empty_ones(), run=run).rewards) == 3
    refused = client.score(empty_ones(), run=f"{run_name}-2").scores
    assert [one.error.code for one in refused] == ["text_empty"] * 3
    nothing = [Sample("a", "", "", format="raw"), Sample("b", "", ""), Sample("c", "Hi")]
    for run in (None, f"{run_name}-1"):
        codes = [one.error.code for one in client.score(nothing, run=run).scores]
        assert codes == ["text_empty"] * 3


def test_empty_responses_align_and_are_judged_like_others(client, run_name):
    client.create_run(run_name, feedback="none", method={**METHOD, "audit_rate": 1.0})
    chat, raw, turns = empty_ones()
    answered = Sample("b", "Hi", "Hello there.")
    aligned = client.align(run_name, step=1, groups=[Group("g", [chat, answered])])
    assert aligned.errors == ()
    client.put_anchors(run_name, [Pair("p", Sample("c", "Yo", "Yes."), Sample("d", "Yo", ""))])
    judged = client.evaluate(run_name, [Pair("p", answered, raw), Pair("q", answered, turns)])
    assert (judged.pairs, judged.errors) == (2, ())
    client.score([chat], run=run_name)
    (kept,) = client.samples(run_name).samples
    assert kept.text == {"prompt": "Hi", "response": ""}
    (label,) = client.add_labels(run_name, [Label(id="chat", grade=0.5)]).labels
    assert label.error is None
    assert client.align(run_name, step=2, groups=[Group("g", [chat, answered])]).errors == ()


def test_lone_surrogates_cost_their_own_sample_alone(client, run_name):
    client.create_run(run_name, feedback="none", method=METHOD)
    half = "half \ud83d"
    halves = [
        Sample("prompt", half, "r"),
        Sample("response", "p", half),
        Sample("raw", "p", half, format="raw"),
        Sample("turns", messages=[{"role": "user", "content": half}, TURNS[-1]]),
        Sample("tools", messages=TURNS, tools=[{"name": half}]),
    ]
    good = Sample("good", "p", "r")
    for run in (None, run_name):
        *bad, fine = client.score([*halves, good], run=run).scores
        assert [one.error.code for one in bad] == ["text_invalid"] * len(halves)
        assert fine.error is None
    whole = Group("whole", [Sample("b", "p", "yes"), Sample("c", "p", "no")])
    broken = Group("broken", [halves[1], Sample("d", "p", "no")])
    aligned = client.align(run_name, step=1, groups=[broken, whole])
    assert [(one.id, one.error.code) for one in aligned.errors] == [("response", "text_invalid")]
    assert aligned.groups.skipped_because["error"] == 1
    judged = client.evaluate(run_name, [Pair("x", good, halves[0]), Pair("y", good, good)])
    assert judged.pairs == 1
    for refused in (Sample("\ud83d", "p", "r"), Sample("x", "p", "r", group="\ud83d")):
        with pytest.raises((ValueError, InvalidRequest)):
            client.score([refused], run=run_name)


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
