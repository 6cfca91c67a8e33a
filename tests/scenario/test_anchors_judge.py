"""Anchors judge candidates; rejections freeze; people lift it: over HTTP and gRPC."""

import dataclasses
from statistics import mean

import numpy as np
import pytest
from support.rollouts import PROMPTS, RESPONSES, WIDTH_P, groups, samples, states

from r2m_client import AnchorStates, Group, InvalidRequest, NotFound, Pair, Sample, ServerError

# One look with a wide margin: sixty pairs are enough to tell something.
GATE = {"anchors_every": 2, "anchors_margin": 0.3, "anchors_looks": 1, "anchors_alpha": 0.4}
METHOD = {"width": 16, "learning_rate": 1e-4, "gate": GATE}
PAIRS = 60


def gold_pairs(client, count=PAIRS, flip=False):
    """Pairs that version 0 has right (or, flipped, wrong): the vanilla reward says which side."""
    texts = [
        Sample(f"t{n}-{side}", f"{PROMPTS[n % 3]} ({n})", f"{RESPONSES[(n * 7) % 5]} {side}")
        for n in range(count)
        for side in ("yes", "no")
    ]
    rewards = [one.vanilla_reward for one in client.score(texts).scores]
    found = []
    for n in range(count):
        a, b = texts[2 * n], texts[2 * n + 1]
        chosen, rejected = (a, b) if (rewards[2 * n] > rewards[2 * n + 1]) != flip else (b, a)
        found.append(
            Pair(
                f"p{n}",
                dataclasses.replace(chosen, id=f"p{n}-c"),
                dataclasses.replace(rejected, id=f"p{n}-r"),
            )
        )
    return found


def anchor_states(pairs, seed=0):
    return [
        AnchorStates(one.id, states(seed + 2 * n), states(seed + 2 * n + 1))
        for n, one in enumerate(pairs)
    ]


@pytest.fixture
def run(client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    return run_name


def test_a_candidate_is_judged_where_anchors_are_due(client, run):
    pairs = gold_pairs(client)
    put = client.put_anchors(run, pairs)
    assert (put.set, put.pairs, put.looks, put.next_step) == (1, PAIRS, 0, 2)
    first = client.align(run, step=1, groups=groups(1))
    assert first.accepted
    assert first.anchors is None
    assert first.anchors_step == 2
    without = client.align(run, step=2, groups=groups(2))
    assert (without.verdict, without.accepted, without.head) == ("undecided", False, first.head)
    assert "hidden states" in without.reason
    assert client.anchors(run).looks == 0
    client.align(run, step=3, groups=groups(3))
    judged = client.align(run, step=4, groups=groups(4), anchors=anchor_states(pairs))
    assert judged.verdict == "accepted", judged.reason
    assert judged.anchors.pairs == PAIRS
    assert judged.anchors.look == 1
    assert judged.anchors.reference.head == 0
    assert judged.anchors.reference.accuracy == 1.0
    assert judged.anchors.live.head == judged.parent
    assert judged.anchors_step == 6
    assert client.anchors(run).looks == 1
    metrics = client.head(run, judged.candidate).metrics
    assert metrics["anchors"]["pairs"] == PAIRS


def test_too_few_pairs_are_undecided_and_never_accepted(client, run):
    pairs = gold_pairs(client, count=1)
    client.put_anchors(run, pairs)
    client.align(run, step=1, groups=groups(1))
    judged = client.align(run, step=2, groups=groups(2), anchors=anchor_states(pairs))
    assert (judged.verdict, judged.accepted) == ("undecided", False)
    assert "1 pair," in judged.reason
    moving = {**METHOD, "gate": {**GATE, "undecided": "move"}}
    client.create_run(f"{run}-m", policy_hidden_size=WIDTH_P, method=moving)
    client.put_anchors(f"{run}-m", pairs)
    client.align(f"{run}-m", step=1, groups=groups(1))
    judged = client.align(f"{run}-m", step=2, groups=groups(2), anchors=anchor_states(pairs))
    assert (judged.verdict, judged.accepted) == ("undecided", True)


def harmful(seed):
    """Groups labelled against the vanilla order, all the same way: it unlearns fast."""
    return [
        Group(one.id, one.samples, preferred=(one.samples[0].id, one.samples[1].id))
        for one in groups(seed)
    ]


def test_harm_is_rejected_and_freezes_the_run(client, run_name):
    method = {
        "width": 16,
        "learning_rate": 0.5,
        "kl_weight": 0.0,
        "gate": {
            **GATE,
            "anchors_every": 1,
            "freeze_after": 2,
            "spread_min": None,
            "spread_max": None,
            "rank_correlation_min": None,
        },
    }
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=method)
    pairs = gold_pairs(client)
    client.put_anchors(run_name, pairs)
    states_now = anchor_states(pairs)
    for step in (1, 2):
        answer = client.align(run_name, step=step, groups=harmful(step), anchors=states_now)
        assert (answer.verdict, answer.head) == ("rejected", 0), answer.reason
        assert "worse than reference" in answer.reason
    run = client.run(run_name)
    assert "2 candidates in a row" in run.frozen
    assert run.rejections == 2
    frozen = client.align(run_name, step=3, groups=groups(3))
    assert (frozen.verdict, frozen.candidate, frozen.reason) == ("frozen", None, run.frozen)
    assert client.align(run_name, step=3, groups=groups(3)) == frozen
    assert client.score(samples(1), run=run_name).head == 0
    lifted = client.unfreeze(run_name, reason="looked at it")
    assert (lifted.frozen, lifted.rejections, lifted.step) == (None, 0, 3)
    assert client.align(run_name, step=4, groups=[]).verdict == "skipped"
    *_, froze, unfroze = client.changes(run_name)
    assert (froze.what, froze.detail) == ("frozen", {"branch": "main", "step": 2})
    assert froze.reason == unfroze.detail["was"]
    assert (unfroze.what, unfroze.reason) == ("unfrozen", "looked at it")


def test_harm_done_between_looks_freezes_at_the_next_one(client, run_name):
    method = {
        "width": 16,
        "learning_rate": 0.5,
        "kl_weight": 0.0,
        "gate": {
            **GATE,
            "anchors_every": 3,
            "spread_min": None,
            "spread_max": None,
            "rank_correlation_min": None,
        },
    }
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=method)
    pairs = gold_pairs(client)
    client.put_anchors(run_name, pairs)
    for step in (1, 2):
        assert client.align(run_name, step=step, groups=harmful(step)).accepted
    client.align(run_name, step=3, groups=harmful(3), anchors=anchor_states(pairs))
    assert "prove live head 2 worse than reference head 0" in client.run(run_name).frozen
    client.rollback(run_name, to=0)
    assert client.unfreeze(run_name).head == 0


def test_people_freeze_and_lift(client, run):
    assert client.freeze(run, reason="holiday").frozen == "holiday"
    assert client.freeze(run, reason="again").frozen == "holiday"
    assert client.align(run, step=1, groups=groups(1)).verdict == "frozen"
    assert client.unfreeze(run).frozen is None
    assert client.align(run, step=2, groups=groups(1)).verdict == "accepted"
    assert [one.what for one in client.changes(run)] == ["created", "frozen", "unfrozen"]


def test_runs_without_policy_states_judge_alone(client, run_name):
    client.create_run(run_name, feedback="backbone", method={"width": 16, "gate": GATE})
    client.put_anchors(run_name, gold_pairs(client))
    client.align(run_name, step=1, groups=groups(1, hidden=False))
    judged = client.align(run_name, step=2, groups=groups(2, hidden=False))
    assert judged.anchors.pairs == PAIRS
    assert judged.verdict == "accepted", judged.reason


def test_the_reference_moves_only_to_what_is_proved_better(client, run_name):
    """Version 0 has every pair wrong; labels the other way round make it right."""
    method = {
        "width": 16,
        "learning_rate": 0.5,
        "kl_weight": 0.0,
        "gate": {
            **GATE,
            "anchors_every": 1,
            "reference": "anchors",
            "spread_min": None,
            "spread_max": None,
            "rank_correlation_min": None,
        },
    }
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=method)
    pairs = gold_pairs(client, flip=True)
    client.put_anchors(run_name, pairs)
    answer = client.align(run_name, step=1, groups=harmful(1), anchors=anchor_states(pairs))
    assert answer.verdict == "accepted", answer.reason
    assert answer.anchors.reference.low > 0
    assert client.run(run_name).aliases["reference"] == answer.head
    again = client.align(run_name, step=2, groups=harmful(2), anchors=anchor_states(pairs))
    assert again.anchors.reference.head == answer.head


def test_a_prompt_that_judges_never_trains(client, run):
    pairs = gold_pairs(client)
    client.put_anchors(run, pairs)
    judge = pairs[0]
    group = Group(
        "g",
        [
            dataclasses.replace(judge.chosen, id="a", hidden_states=states(1)),
            dataclasses.replace(judge.rejected, id="b", hidden_states=states(2)),
        ],
        preferred=("a", "b"),
    )
    answer = client.align(run, step=1, groups=[group])
    assert (answer.groups.withheld, answer.groups.labelled, answer.groups.pseudo) == (1, 0, 1)
    used = Group("h", samples(3, group="h"), preferred=("h-0", "h-1"))
    assert client.align(run, step=2, groups=[used]).groups.labelled == 1
    learnt = Pair(
        "late",
        Sample("x", used.samples[0].prompt, "yes"),
        Sample("y", used.samples[0].prompt, "no"),
    )
    with pytest.raises(InvalidRequest, match="learnt from") as refused:
        client.put_anchors(run, [*pairs, learnt])
    assert refused.value.field == f"pairs[{PAIRS}]"
    assert client.anchors(run).set == 1


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        (lambda p: {"rejected": dataclasses.replace(p.chosen, id="r")}, "pairs[0]", "same text"),
        (
            lambda p: {"rejected": dataclasses.replace(p.rejected, prompt="")},
            "pairs[0].rejected",
            "empty",
        ),
    ],
)
def test_bad_anchors_are_refused_whole(client, run, change, field, words):
    pairs = gold_pairs(client, count=3)
    pairs[0] = dataclasses.replace(pairs[0], **change(pairs[0]))
    with pytest.raises(ServerError, match=words) as refused:
        client.put_anchors(run, pairs)
    assert refused.value.field == field
    with pytest.raises(NotFound):
        client.anchors(run)


def test_one_bad_anchor_costs_itself_alone(client, run):
    pairs = gold_pairs(client)
    client.put_anchors(run, pairs)
    client.align(run, step=1, groups=groups(1))
    sent = anchor_states(pairs)
    sent[0] = AnchorStates("p0", states(1, width=WIDTH_P + 1), states(2))
    sent[1] = AnchorStates("p1", np.full((3, WIDTH_P), np.nan, np.float32), states(3))
    sent[2] = AnchorStates("stranger", states(4), states(5))
    judged = client.align(run, step=2, groups=groups(2), anchors=sent)
    assert judged.anchors.pairs == PAIRS - 3
    assert {(one.group, one.error.code) for one in judged.errors} == {
        ("p0", "feedback_width"),
        ("p1", "feedback_not_finite"),
        ("stranger", "unknown_anchor"),
    }


def test_states_of_no_set_are_refused(client, run):
    with pytest.raises(NotFound) as refused:
        client.align(run, step=1, groups=groups(1), anchors=[AnchorStates("p", [[0.0]], [[0.0]])])
    assert (refused.value.code, refused.value.field) == ("no_anchors", "anchors")


def test_evidence_comes_along(client, run):
    client.align(run, step=1, groups=groups(1))
    step = groups(2, size=6)
    scores = client.score([one for group in step for one in group.samples], run=run).scores
    found = client.align(run, step=2, groups=step).evidence
    assert found.reward_mean == pytest.approx(mean(one.reward for one in scores), abs=1e-5)
    vanilla = mean(one.vanilla_reward for one in scores)
    assert found.vanilla_mean == pytest.approx(vanilla, abs=1e-5)
    assert found.spread_ratio == pytest.approx(1.0, abs=0.2)
    assert found.rank_correlation > 0.8
    assert found.unusable == 0.0
    assert -1 <= found.length_correlation <= 1
    assert 0 <= found.vanilla_agreement <= 1
    assert found.label_agreement is None
    assert found.feedback_gain > 0
