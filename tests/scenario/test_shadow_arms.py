"""Controls: shadow arms that are what a run of its own would be, and cost the live head nothing."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support.rollouts import WIDTH_P, groups, samples
from support.rollouts import labelled as news
from support.serving import running
from test_split import METHOD as SPLIT_METHOD

from r2m_client import Client, Group, InvalidRequest, Label

KINDS = ["shuffled", "backbone", "none"]
OPEN = {"spread_min": None, "spread_max": None, "rank_correlation_min": None, "freeze_after": None}
GUARDED = {"width": 16, "learning_rate": 2e-3, "gate": OPEN}
LABELLED = {"profile": "labelled", "width": 16, "learning_rate": 2e-3}
AUDITED = {**LABELLED, "audit_rate": 1.0, "judge_share": 0.0}


@pytest.fixture(scope="module")
def exact(reward_model, backbone, tmp_path_factory):
    """A deterministic server: what is the same is the same bit for bit."""
    state = tmp_path_factory.mktemp("exact")
    with running(reward_model, state, backbone=backbone, deterministic=True) as one:
        yield one


@pytest.fixture
def client(exact, request):
    kind = getattr(request, "param", "http")
    with Client(exact.urls[kind], wire_dtype="float32", retries=0) as one:
        yield one


both = pytest.mark.parametrize("client", ["http", "grpc"], indirect=True)


def labelled(seed, *, count=3, all_of_them=False):
    """Groups of which the first and the last are labelled from outside."""
    found = []
    for place, group in enumerate(groups(seed, count=count)):
        ids = [one.id for one in group.samples]
        known = all_of_them or place != 1
        preferred = (ids[seed % 4], ids[(seed + 1) % 4]) if known else None
        found.append(dataclasses.replace(group, preferred=preferred))
    return found


def shuffled(sent):
    """The same with the hidden states of the group before."""
    return [
        dataclasses.replace(
            group,
            samples=[
                dataclasses.replace(one, hidden_states=other.hidden_states)
                for one, other in zip(group.samples, sent[place - 1].samples, strict=True)
            ],
        )
        for place, group in enumerate(sent)
    ]


def bare(sent):
    return [
        dataclasses.replace(
            group, samples=[dataclasses.replace(one, hidden_states=None) for one in group.samples]
        )
        for group in sent
    ]


def tensors(server, run, number):
    """A version's optimizer file."""
    state = server.parts.registry.run_state(run)
    head = server.parts.registry.head(run, number)
    assert state is not None
    return load(server.parts.retention._blobs.get(head.optimizer))


def control_of(server, run, number, kind):
    at = f"control.{kind}.weight."
    found = tensors(server, run, number)
    return {key.removeprefix(at): one for key, one in found.items() if key.startswith(at)}


@pytest.mark.parametrize("method", [GUARDED, LABELLED], ids=["guarded", "labelled"])
@both
def test_each_is_the_run_that_one_would_make_for_it(exact, client, run_name, method):
    """The oracle is a run of its own: other feedback, or other samples' states, same labels."""
    name = run_name[-60:]
    client.create_run(name, policy_hidden_size=WIDTH_P, method={**method, "controls": KINDS})
    alone = {kind: f"{name}-{kind}" for kind in KINDS}
    client.create_run(alone["shuffled"], policy_hidden_size=WIDTH_P, method=method)
    client.create_run(alone["backbone"], feedback="backbone", method=method)
    client.create_run(alone["none"], feedback="none", method=method)
    for step in range(1, 5):
        sent = labelled(step)
        answer = client.align(name, step=step, groups=sent)
        assert answer.accepted
        theirs = {
            "shuffled": client.align(
                alone["shuffled"], step=step, groups=shuffled(used(sent, method))
            ),
            "backbone": client.align(alone["backbone"], step=step, groups=bare(sent)),
            "none": client.align(alone["none"], step=step, groups=bare(sent)),
        }
        for arm in answer.controls.arms:
            assert (arm.pairs, arm.moved, arm.verdict) == (2, True, "too_few_pairs")
            assert arm.accuracy == theirs[arm.control].evidence.label_agreement
            assert arm.head_accuracy == answer.evidence.label_agreement
            assert arm.total.pairs == 2 * step
            assert theirs[arm.control].accepted
            ours = control_of(exact, name, answer.head, arm.control)
            expected = load(client.head_weights(alone[arm.control]))
            assert ours.keys() == expected.keys()
            for key, one in expected.items():
                assert torch.equal(ours[key], one), (arm.control, key)
    assert [arm.control for arm in answer.controls.arms] == KINDS
    live = client.run(name).live["controls"]
    assert live["arms"][0]["total"]["pairs"] == 8


def used(sent, method):
    """The groups that a run learns from: another sample's states are those of one of them."""
    return [one for one in sent if one.preferred] if method is LABELLED else sent


@both
def test_the_live_head_is_the_same_with_and_without(client, run_name):
    name = run_name[-60:]
    for run, more in ((f"{name}-with", {"controls": KINDS}), (f"{name}-without", {})):
        client.create_run(run, policy_hidden_size=WIDTH_P, method={**GUARDED, **more})
    batch = samples(9)
    for step in range(1, 4):
        ours, theirs = (
            client.align(f"{name}-{one}", step=step, groups=labelled(step))
            for one in ("with", "without")
        )
        assert dataclasses.replace(ours, run="", controls=None) == dataclasses.replace(
            theirs, run=""
        )
        a, b = (client.score(batch, run=f"{name}-{one}").rewards for one in ("with", "without"))
        assert a == b
    a, b = (load(client.head_weights(f"{name}-{one}")) for one in ("with", "without"))
    assert all(torch.equal(a[key], b[key]) for key in a)


@both
def test_a_retry_counts_once_and_a_rollback_takes_back(exact, client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method={**LABELLED, "controls": KINDS})
    first = client.align(run_name, step=1, groups=labelled(1))
    assert client.align(run_name, step=1, groups=labelled(1)) == first
    second = client.align(run_name, step=2, groups=labelled(2))
    assert [arm.total.pairs for arm in second.controls.arms] == [4, 4, 4]
    back = client.rollback(run_name, to_step=1)
    again = client.align(run_name, step=2, groups=labelled(2), branch=back.branch)
    assert again.controls == second.controls
    for kind in KINDS:
        a, b = (control_of(exact, run_name, one.head, kind) for one in (second, again))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_rejected_step_moves_and_counts_nothing(client, run_name):
    gate = {**OPEN, "spread_max": 1e-9, "spread_min": 1e-12}
    method = {**GUARDED, "gate": gate, "controls": KINDS}
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=method)
    answer = client.align(run_name, step=1, groups=labelled(1))
    assert answer.verdict == "rejected"
    for arm in answer.controls.arms:
        assert (arm.pairs, arm.moved, arm.total.pairs) == (2, False, 0)
        assert arm.note == "the step was not accepted: its labels are not counted"
    answer = client.align(run_name, step=2, groups=labelled(1))
    assert [arm.total.pairs for arm in answer.controls.arms] == [0, 0, 0]


@both
def test_a_late_label_is_fresh_once(client, run_name):
    """Labels that come after their samples count at the first align that learns from them."""
    client.create_run(
        run_name, policy_hidden_size=WIDTH_P, method={**AUDITED, "controls": ["none"]}
    )

    def label(seed):
        sent = [
            dataclasses.replace(one, group=f"g{seed}") for one in samples(seed, group=f"g{seed}")
        ]
        client.score(sent, run=run_name)
        client.add_labels(
            run_name, [Label(id=one.id, grade=float(n)) for n, one in enumerate(sent)]
        )

    def fresh(step, **more):
        answer = client.align(run_name, step=step, groups=[], **more)
        (arm,) = answer.controls.arms
        return answer.groups.replayed, arm.pairs, arm.total.pairs

    label(1)
    assert fresh(1) == (1, 1, 1)
    assert fresh(2) == (1, 0, 1)
    label(2)
    label(3)
    assert fresh(3) == (3, 2, 3)
    back = client.rollback(run_name, to_step=2)
    assert fresh(3, branch=back.branch) == (3, 2, 3)
    back = client.rollback(run_name, to_step=0)
    assert fresh(1, branch=back.branch) == (3, 3, 3)


@both
def test_what_was_learnt_from_is_not_asked_again(client, run_name):
    """Fixed pairs sent at every step, or a label that changes its mind: neither is news."""
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method={**LABELLED, "controls": KINDS})

    def asked(step, sent):
        answer = client.align(run_name, step=step, groups=sent)
        assert all(arm.moved for arm in answer.controls.arms)
        return {(arm.pairs, arm.total.pairs) for arm in answer.controls.arms}

    sent = news(1)
    assert asked(1, sent) == {(3, 3)}
    assert asked(2, sent) == {(0, 3)}
    turned = [dataclasses.replace(one, preferred=one.preferred[::-1]) for one in sent]
    assert asked(3, turned) == {(0, 3)}
    assert asked(4, [*news(2)[:1], *sent[1:]]) == {(1, 4)}


def test_a_label_counts_once_within_a_step(client, run_name):
    """The same pair in many groups is one label; and shuffled states are never the samples' own."""
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method={**LABELLED, "controls": KINDS})
    (one, *_) = news(1)
    copies = [
        Group(
            f"c{n}",
            [dataclasses.replace(each, id=f"c{n}-{each.id}") for each in one.samples],
            preferred=[f"c{n}-{name}" for name in one.preferred],
        )
        for n in range(5)
    ]
    answer = client.align(run_name, step=1, groups=copies)
    assert {arm.pairs for arm in answer.controls.arms} == {1}


def test_what_no_control_could_be_asked_is_learnt_from_all_the_same(client, run_name):
    """Pairs that the head learnt from while the arm was out are no news for it later."""
    method = {**LABELLED, "controls": ["shuffled"]}
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=method)
    sent = news(1)
    scored = client.score([s for g in sent for s in g.samples], run=run_name, feedback="split")
    client.align(run_name, step=1, groups=sent, feedback="split", context=scored.context)
    answer = client.align(run_name, step=2, groups=sent)
    assert [(arm.pairs, arm.moved) for arm in answer.controls.arms] == [(0, True)]


def test_without_labels_it_says_what_is_missing(client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method={**GUARDED, "controls": KINDS})
    answer = client.align(run_name, step=1, groups=groups(1))
    for arm in answer.controls.arms:
        assert (arm.verdict, arm.pairs, arm.moved) == ("too_few_pairs", 0, True)
        assert "no outside label has come" in arm.note
        assert "audit_rate" in arm.note
    skipped = client.align(run_name, step=2, groups=[])
    assert (skipped.verdict, skipped.controls) == ("skipped", None)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"audit_rate": 1.0, "judge_share": 1.0}, "kept to judge with (judge_share)"),
        ({"replay_groups": 0}, "give `preferred` with a group"),
    ],
)
def test_labels_that_cannot_count_are_not_asked_for(client, run_name, method, words):
    method = {**GUARDED, **method, "controls": ["none"]}
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=method)
    withheld = "judge_share" in method
    sent = labelled(1) if withheld else groups(1)
    answer = client.align(run_name, step=1, groups=sent)
    assert answer.groups.withheld == 2 * withheld
    (arm,) = answer.controls.arms
    assert arm.note.endswith(words) if not withheld else words in arm.note


def test_a_lone_group_takes_states_from_its_own_other_samples(exact, client, run_name):
    name = run_name[-60:]
    method = {**LABELLED, "controls": ["shuffled"]}
    client.create_run(name, policy_hidden_size=WIDTH_P, method=method)
    client.create_run(f"{name}-other", policy_hidden_size=WIDTH_P, method=LABELLED)
    (sent,) = labelled(1, count=1)
    turned = [*sent.samples[1:], sent.samples[0]]
    other = Group(
        sent.id,
        [
            dataclasses.replace(one, hidden_states=two.hidden_states)
            for one, two in zip(sent.samples, turned, strict=True)
        ],
        preferred=sent.preferred,
    )
    head = client.align(name, step=1, groups=[sent]).head
    client.align(f"{name}-other", step=1, groups=[other])
    ours = control_of(exact, name, head, "shuffled")
    theirs = load(client.head_weights(f"{name}-other"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@both
def test_states_that_stay_with_the_trainer_cannot_be_shuffled(client, run_name):
    method = {**SPLIT_METHOD, "controls": KINDS, "gate": OPEN}
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=method)
    for step in (1, 2):
        sent = labelled(step)
        scored = client.score([s for g in sent for s in g.samples], run=run_name, feedback="split")
        answer = client.align(
            run_name, step=step, groups=sent, feedback="split", context=scored.context
        )
        shuffled_arm, *others = answer.controls.arms
        assert shuffled_arm.verdict == "not_available"
        assert (shuffled_arm.pairs, shuffled_arm.moved) == (0, False)
        assert "stay with the trainer" in shuffled_arm.note
        assert [(one.pairs, one.moved) for one in others] == [(2, True), (2, True)]


@pytest.mark.parametrize(
    ("controls", "feedback", "words"),
    [
        ("none", "policy", "controls is a list"),
        (None, "policy", "controls is a list"),
        (["vanilla"], "policy", "must be 'shuffled', 'backbone' or 'none'"),
        ([1], "policy", "must be 'shuffled', 'backbone' or 'none'"),
        (["none", "none"], "policy", "names each once"),
        (["backbone"], "backbone", "same head again"),
        (["shuffled"], "none", "takes no controls"),
        (["none"], "policy, pseudo", "judged by outside labels"),
    ],
)
@both
def test_what_makes_no_sense_is_refused(client, run_name, controls, feedback, words):
    method = {"width": 16, "controls": controls}
    feedback, *labels = feedback.split(", ")
    if labels:
        method["labels"] = labels[0]
    with pytest.raises(InvalidRequest, match=words):
        client.create_run(run_name, policy_hidden_size=None if feedback != "policy" else WIDTH_P,
                          feedback=feedback, method=method)  # fmt: skip


@both
def test_they_are_the_run_s_for_good(client, run_name):
    method = {**GUARDED, "controls": ["none"]}
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=method)
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=method)  # the same again
    assert client.run(run_name).method["controls"] == ["none"]
    with pytest.raises(InvalidRequest, match="controls"):
        client.update_run(run_name, {"controls": []})
    with pytest.raises(InvalidRequest, match="judged by outside labels"):
        client.update_run(run_name, {"labels": "pseudo"})
    assert client.run(run_name).method["labels"] == "outside_first"


def of_a_gpu():
    raise torch.OutOfMemoryError("no memory")


def of_a_cpu():
    torch.empty(2**46)  # torch's own words; no machine has it


def of_numpy():
    np.empty(2**46)


@pytest.mark.parametrize("ask", [of_a_gpu, of_a_cpu, of_numpy])
def test_one_that_finds_no_memory_is_out_and_the_head_goes_on(client, run_name, monkeypatch, ask):
    from r2m_service.engine import controls

    def none_left(*given, **more):
        ask()

    method = {**GUARDED, "controls": ["backbone", "none"]}
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=method)
    with monkeypatch.context() as patched:
        patched.setattr(controls.Controls, "_attended", none_left)
        answer = client.align(run_name, step=1, groups=labelled(1))
    assert answer.accepted
    out, none = answer.controls.arms
    assert (out.verdict, out.moved) == ("not_available", False)
    assert "no memory" in out.note
    assert (none.pairs, none.moved) == (2, True)
    real, calls = controls.read_control, []

    def none_for_the_first(*given):
        calls.append(given)
        if len(calls) == 1:  # then it is read to where there is memory
            ask()
        return real(*given)

    with monkeypatch.context() as patched:
        patched.setattr(controls, "read_control", none_for_the_first)
        answer = client.align(run_name, step=2, groups=labelled(2))
    assert [arm.moved for arm in answer.controls.arms] == [False, True]
    answer = client.align(run_name, step=3, groups=labelled(3))
    assert [arm.moved for arm in answer.controls.arms] == [True, True]
