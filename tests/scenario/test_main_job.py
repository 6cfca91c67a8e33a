"""The scenario of the first issue, over HTTP and over gRPC, and that both tell the same story."""

import contextlib
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support.rollouts import WIDTH_P, groups, samples, states

from r2m_client import (
    AliasMoved,
    Client,
    Conflict,
    DeadlineError,
    Group,
    InvalidRequest,
    NotFound,
    RunExists,
    Sample,
    ServerError,
    StepConflict,
    StepOutOfOrder,
)

METHOD = {"width": 16, "learning_rate": 3e-4}


def story(client, run):
    """Everything a trainer does; returns what it saw, for comparison between transports."""
    seen = []
    info = client.create_run(run, policy_hidden_size=WIDTH_P, method=METHOD)
    assert (info.head, info.step, info.next_step) == (0, 0, 1)
    assert client.create_run(run, policy_hidden_size=WIDTH_P, method=METHOD) == info
    seen.append(info.method)

    batch = samples(1)
    first = client.score(batch, run=run)
    vanilla = client.score([Sample(s.id, s.prompt, s.response) for s in batch])
    assert vanilla.head is None
    assert [s.reward for s in vanilla.scores] == pytest.approx(
        [s.vanilla_reward for s in first.scores], abs=1e-5
    )
    # Version 0: 0.6 of the frozen model's own reward (its head has no bias).
    assert first.rewards == pytest.approx([0.6 * r for r in vanilla.rewards], abs=1e-5)
    bare = client.score([Sample(s.id, s.prompt, s.response) for s in batch], run=run)
    assert {s.error.code for s in bare.scores} == {"feedback_missing"}
    seen += [first.rewards, vanilla.rewards]

    answers = [client.align(run, step=step, groups=groups(step)) for step in (1, 2, 3)]
    assert [a.step for a in answers] == [1, 2, 3]
    assert all(a.accepted for a in answers), [a.reason for a in answers]
    assert [a.head for a in answers] == [1, 2, 3]
    assert [a.parent for a in answers] == [0, 1, 2]
    again = client.align(run, step=2, groups=groups(2))
    assert again == answers[1]
    seen += [
        (a.verdict, a.reason, a.loss, a.groups, a.drift, a.sigma, a.gradient_norm) for a in answers
    ]

    live = client.score(batch, run=run)
    assert live.head == 3
    assert live.rewards != first.rewards
    pinned = client.score(batch, run=run, head=0)
    assert pinned.rewards == pytest.approx(first.rewards, abs=1e-5)
    seen.append(live.rewards)

    moved = client.set_alias(run, "best", 2)
    assert (moved.head, moved.previous) == (2, None)
    assert client.set_alias(run, "best", 1, expect=2).previous == 2
    assert client.score(batch, run=run, head="best").head == 1
    with pytest.raises(AliasMoved):
        client.set_alias(run, "best", 3, expect=2)

    state = client.run(run)
    assert (state.head, state.step, state.next_step) == (3, 3, 4)
    assert state.aliases == {"live": 3, "previous": 2, "candidate": 3, "reference": 0, "best": 1}
    lineage = client.heads(run)
    assert [(h.head, h.parent, h.t, h.step) for h in lineage] == [
        (0, None, 0, 0), (1, 0, 1, 1), (2, 1, 2, 2), (3, 2, 3, 3),
    ]  # fmt: skip
    weights = load(client.head_weights(run, 3))
    assert {name: list(t.shape) for name, t in weights.items()} == {
        "w_q": [32, 16], "w_k": [WIDTH_P, 16], "w_v": [WIDTH_P, 16], "w_o": [16, 32],
        "head.weight": [1, 32],
    }  # fmt: skip
    seen.append({name: t.tolist() for name, t in sorted(weights.items())})

    for call, kind, code in (
        (lambda: client.score(batch, run="nobody"), NotFound, "unknown_run"),
        (lambda: client.score(batch, run=run, head=99), NotFound, "unknown_head"),
        (lambda: client.score(batch, run=run, head="nice"), NotFound, "unknown_alias"),
        (lambda: client.align(run, step=9, groups=[]), StepOutOfOrder, "step_out_of_order"),
        (lambda: client.align(run, step=2, groups=groups(7)), StepConflict, "step_conflict"),
        (lambda: client.align(run, step=4, groups=[], branch="x"), NotFound, "unknown_branch"),
        (lambda: client.set_alias(run, "live", 1), Conflict, "alias_reserved"),
        (lambda: client.set_alias(run, "best", 77), NotFound, "unknown_head"),
        (lambda: client.set_alias(run, "9", 1), InvalidRequest, "invalid_request"),
        (lambda: client.create_run(run, policy_hidden_size=5, method=METHOD), RunExists,
         "run_exists"),
        (lambda: client.create_run("b d", policy_hidden_size=5), InvalidRequest,
         "invalid_request"),
        (lambda: client.create_run("x", method=METHOD), InvalidRequest, "invalid_request"),
        (lambda: client.create_run("x", policy_hidden_size=5, method={"widht": 3}),
         InvalidRequest, "invalid_request"),
        (lambda: client.score([*batch, batch[0]], run=run), InvalidRequest, "duplicate_id"),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.code == code
        seen.append((code, str(caught.value).replace(run, "RUN"), caught.value.field))
    return seen


@pytest.fixture(scope="session")
def stories(server):
    """The story over each transport; float32 on the wire, one seed: the very same run."""
    found = {}
    for kind, url in server.urls.items():
        with Client(url, wire_dtype="float32", retries=0) as client:
            found[kind] = story(client, f"story-{kind}")
    return found


def test_both_transports_tell_the_same_story(stories):
    assert len(stories["http"]) == len(stories["grpc"])
    for ours, theirs in zip(stories["http"], stories["grpc"], strict=True):
        assert ours == theirs


def checked(client, run, bad):
    """A bad sample between two good ones: its own error, and rewards for the others."""
    good = samples(2, group="ok", count=2)
    answer = client.score([good[0], bad, good[1]], run=run)
    assert [s.error is None for s in answer.scores] == [True, False, True]
    assert all(np.isfinite(answer.scores[n].reward) for n in (0, 2))
    return answer.scores[1].error


def bad_samples():
    def sample(hidden, **changes):
        return Sample(
            **{"id": "bad", "prompt": "p", "response": "r", **changes}, hidden_states=hidden
        )

    nan, inf = states(1), states(2)
    nan[2, 3], inf[0, 0] = np.nan, -np.inf
    return {
        "missing": (sample(None), "feedback_missing"),
        "width": (sample(states(1, width=23)), "feedback_width"),
        "nan": (sample(nan), "feedback_not_finite"),
        "inf": (sample(inf), "feedback_not_finite"),
        "empty text": (sample(states(1), prompt=""), "text_empty"),
        "no text": (sample(states(1), response="half \ud83d"), "text_invalid"),
        "too long": (sample(states(1), response="word " * 300), "text_too_long"),
        "convention": (sample(states(1), hidden_state="pre_norm"), "feedback_convention"),
        "tokens": (sample(states(1, tokens=5), tokens=6), "feedback_shape"),
    }


@pytest.mark.parametrize("what", list(bad_samples()))
def test_a_bad_sample_fails_alone(client, run_name, what):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    bad, code = bad_samples()[what]
    error = checked(client, run_name, bad)
    assert error.code == code
    assert len(str(error)) > 20
    assert client.score(samples(3), run=run_name).rewards


def test_the_same_bad_sample_has_the_same_words_on_both_transports(server):
    found = {}
    for kind, url in server.urls.items():
        with Client(url, wire_dtype="float32", retries=0) as client:
            client.create_run("same-words", policy_hidden_size=WIDTH_P, method=METHOD)
            found[kind] = [
                (error.code, error.message, error.field)
                for bad, _ in bad_samples().values()
                for error in [checked(client, "same-words", bad)]
            ]
    assert found["http"] == found["grpc"]


def test_a_group_with_a_bad_sample_is_left_out_of_align(client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    batch = groups(1)
    broken = states(5)
    broken[1, 1] = np.nan
    hurt = list(batch[1].samples)
    hurt[2] = Sample(hurt[2].id, hurt[2].prompt, hurt[2].response, broken)
    missing = list(batch[2].samples)
    missing[0] = Sample(missing[0].id, missing[0].prompt, missing[0].response)
    answer = client.align(
        run_name, step=1, groups=[batch[0], Group("g1", hurt), Group("g2", missing)]
    )
    assert (answer.groups.used, answer.groups.skipped) == (1, 2)
    assert answer.groups.skipped_because == {"error": 2}
    assert {(e.id, e.group, e.error.code) for e in answer.errors} == {
        ("g1-2", "g1", "feedback_not_finite"),
        ("g2-0", "g2", "feedback_missing"),
    }
    assert answer.verdict == "accepted"


def test_an_align_with_nothing_to_learn_from_still_advances_the_clock(client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    first = client.align(run_name, step=1, groups=[])
    assert (first.verdict, first.head, first.candidate) == ("skipped", 0, None)
    one = samples(1)[0]
    twins = [Sample(f"t{n}", one.prompt, one.response, one.hidden_states) for n in range(3)]
    second = client.align(
        run_name, step=2, groups=[Group("equal", twins), Group("single", samples(2, count=1))]
    )
    assert second.verdict == "skipped"
    assert second.groups.skipped_because == {"equal": 1, "too_few": 1}
    assert client.run(run_name).next_step == 3
    assert client.align(run_name, step=3, groups=groups(3)).candidate == 1


def test_a_label_from_outside_is_learned_instead_of_the_pseudo_label(client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    batch = groups(1, count=1)
    worst_first = client.score(batch[0].samples, run=run_name)
    order = sorted(worst_first.scores, key=lambda s: s.reward)
    label = [order[0].id, order[-1].id]
    answer = client.align(
        run_name, step=1, groups=[Group(batch[0].id, batch[0].samples, preferred=label)]
    )
    assert (answer.groups.labelled, answer.groups.pseudo) == (1, 0)
    assert answer.loss.gre is None
    assert answer.loss.bt > np.log(2)  # the label says the opposite of the rewards
    for wrong in (["a", "b"], [label[0], label[0]], [label[0]]):
        with pytest.raises(InvalidRequest):
            client.align(
                run_name, step=2, groups=[Group(batch[0].id, batch[0].samples, preferred=wrong)]
            )


def test_two_samples_a_group_have_bt_alone_and_it_is_said(client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    answer = client.align(run_name, step=1, groups=groups(1, size=2))
    assert answer.loss.gre is None
    assert answer.loss.bt is not None
    assert any("BT alone" in note for note in answer.notes)


@pytest.mark.parametrize("feedback", ["backbone", "none"])
def test_runs_without_hidden_states_learn_too(client, run_name, feedback):
    info = client.create_run(run_name, feedback=feedback, method={**METHOD, "kl_weight": 0.1})
    assert info.policy.hidden_size == 32
    batch = samples(1, hidden=False)
    first = client.score(batch, run=run_name)
    vanilla = client.score(batch)
    omega = 1.0 if feedback == "none" else 0.6
    assert first.omega == omega
    assert first.rewards == pytest.approx([omega * r for r in vanilla.rewards], abs=1e-5)
    for step in (1, 2, 3):
        answer = client.align(run_name, step=step, groups=groups(step, hidden=False))
        assert answer.accepted, answer.reason
    assert client.score(batch, run=run_name).rewards != first.rewards
    weights = load(client.head_weights(run_name))
    assert ("w_o" in weights) == (feedback == "backbone")
    assert client.score(samples(1), run=run_name).scores[0].error.code == "feedback_unexpected"
    assert client.score(samples(1)).scores[0].error.code == "feedback_unexpected"


def test_16_bit_hidden_states_change_rewards_little(server, client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    for step in (1, 2, 3):
        client.align(run_name, step=step, groups=groups(step))
    batch = [s for seed in range(4) for s in samples(seed, group=f"s{seed}")]
    exact = np.array(client.score(batch, run=run_name).rewards)
    for dtype in ("bfloat16", "float16"):
        with Client(server.urls[client.kind], wire_dtype=dtype) as narrow:
            found = np.array(narrow.score(batch, run=run_name).rewards)
        assert 0 < np.abs(found - exact).max() < 0.01 * exact.std()
    half = [
        Sample(s.id, s.prompt, s.response, torch.tensor(s.hidden_states).bfloat16()) for s in batch
    ]
    assert client.score(half, run=run_name).rewards == pytest.approx(list(exact), abs=0.01)


def test_rewards_do_not_depend_on_the_batch(client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    client.align(run_name, step=1, groups=groups(1))
    batch = [s for seed in range(6) for s in samples(seed, group=f"s{seed}")]
    together = np.array(client.score(batch, run=run_name).rewards)
    alone = np.array([client.score([s], run=run_name).rewards[0] for s in batch])
    assert np.abs(together - alone).max() < 1e-5 * together.std()


def test_empty_calls_are_answered(client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    assert client.score([], run=run_name).scores == ()
    assert client.score([]).scores == ()


def test_an_archived_run_can_be_read_and_nothing_else(client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    assert client.archive_run(run_name).archived
    assert client.archive_run(run_name).archived
    assert client.run(run_name).archived
    assert client.heads(run_name)
    for call in (
        lambda: client.score(samples(1), run=run_name),
        lambda: client.align(run_name, step=1, groups=[]),
        lambda: client.set_alias(run_name, "a", 0),
        lambda: client.rollback(run_name, to=0),
        lambda: client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD),
    ):
        with pytest.raises(ServerError) as caught:
            call()
        assert caught.value.code == "run_archived"


def test_rollback_opens_a_branch_and_the_clock_goes_on_from_there(client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    for step in (1, 2, 3):
        client.align(run_name, step=step, groups=groups(step))
    before = client.score(samples(1), run=run_name, head=1).rewards
    back = client.rollback(run_name, to_step=1, reason="resumed from checkpoint 1")
    assert (back.branch, back.head, back.step, back.next_step) == ("b1", 1, 1, 2)
    assert client.score(samples(1), run=run_name).rewards == pytest.approx(before, abs=1e-6)
    # Other data under an answered step is fine on the new branch; heads go on growing.
    answer = client.align(run_name, step=2, groups=groups(8))
    assert (answer.branch, answer.head, answer.parent) == ("b1", 4, 1)
    assert client.head(run_name, 4).t == 2
    # The same data on the new branch gives what it gave on the old one.
    client.rollback(run_name, to=1)
    twin = client.align(run_name, step=2, groups=groups(2))
    assert load(client.head_weights(run_name, twin.head))["w_o"].equal(
        load(client.head_weights(run_name, 2))["w_o"]
    )
    # The abandoned branch still answers its own steps.
    assert client.align(run_name, step=3, groups=groups(3), branch="main").head == 3
    assert client.rollback(run_name, to_step=0, branch="main").head == 0
    for wrong in ({}, {"to": 1, "to_step": 1}, {"to_step": 99}, {"to": 77}):
        with pytest.raises(ServerError):
            client.rollback(run_name, **wrong)


def test_a_candidate_that_drifts_too_far_is_rejected_and_live_stays(client, run_name):
    client.create_run(
        run_name, policy_hidden_size=WIDTH_P, method={"width": 16, "learning_rate": 0.05}
    )
    before = client.score(samples(1), run=run_name)
    answer = client.align(run_name, step=1, groups=groups(1))
    assert (answer.verdict, answer.accepted, answer.head, answer.candidate) == (
        "rejected", False, 0, 1,
    )  # fmt: skip
    assert "rank correlation" in answer.reason or "spread ratio" in answer.reason
    after = client.score(samples(1), run=run_name)
    assert (after.head, after.rewards) == (0, before.rewards)
    # It is kept for study, numbers go on growing, and t does not.
    assert client.head(run_name, 1).verdict == "rejected"
    assert client.score(samples(1), run=run_name, head=1).rewards != before.rewards
    second = client.align(run_name, step=2, groups=groups(2))
    assert (second.parent, second.candidate, client.head(run_name, 2).t) == (0, 2, 1)
    with pytest.raises(InvalidRequest, match="never was live"):
        client.rollback(run_name, to=1)


def test_an_align_whose_caller_gave_up_is_answered_to_the_retry(server, run_name):
    """A caller whose time is over before the work begins shows nothing: then more patience."""
    big = groups(1, count=30, size=8)
    with Client(server.urls["grpc"], wire_dtype="float32", retries=0) as client:
        for patience in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
            run = f"{run_name[:80]}-{patience}"
            client.create_run(run, policy_hidden_size=WIDTH_P, method=METHOD)
            with (
                Client(server.urls["grpc"], wire_dtype="float32", timeout=patience) as hasty,
                contextlib.suppress(DeadlineError),
            ):
                hasty.align(run, step=1, groups=big)
                continue
            # Nobody asks again, and what had begun is finished all the same.
            deadline = time.monotonic() + 5
            while client.run(run).step == 0 and time.monotonic() < deadline:
                time.sleep(0.05)
            if client.run(run).step == 1:
                break
        else:
            raise AssertionError("no align whose caller gave up was finished")
        assert client.align(run, step=1, groups=big).head == 1


def test_a_candidate_whose_rewards_overflow_never_goes_live(client, run_name):
    wild = {"width": 8, "learning_rate": 1000.0, "max_grad_norm": None, "kl_weight": 0.0}
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=wild)
    batch = [
        Group(g.id, [Sample(s.id, s.prompt, s.response, s.hidden_states * 1e9) for s in g.samples])
        for g in groups(1)
    ]
    verdicts = []
    for step in range(1, 9):
        answer = client.align(run_name, step=step, groups=batch)
        verdicts.append(answer.verdict)
        scored = client.score(batch[0].samples, run=run_name)
        assert all(s.error is None and np.isfinite(s.reward) for s in scored.scores), answer.reason
    assert "rejected" in verdicts


def test_reference_cannot_be_a_rejected_head(client, run_name):
    client.create_run(
        run_name, policy_hidden_size=WIDTH_P, method={"width": 16, "learning_rate": 0.05}
    )
    assert client.align(run_name, step=1, groups=groups(1)).verdict == "rejected"
    with pytest.raises(InvalidRequest, match="drift cannot be measured"):
        client.set_alias(run_name, "reference", 1)


def test_a_left_branch_takes_no_new_steps(client, run_name):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    for step in (1, 2):
        client.align(run_name, step=step, groups=groups(step))
    client.rollback(run_name, to_step=1)
    assert client.score(samples(1), run=run_name).branch == "b1"
    with pytest.raises(ServerError) as caught:
        client.align(run_name, step=3, groups=groups(3), branch="main")
    assert caught.value.code == "branch_left"
    # And back over several branches to where the first one began.
    for _ in range(9):
        client.rollback(run_name, to_step=1)
    assert [one.branch for one in client.run(run_name).branches] == [
        "main", *(f"b{n}" for n in range(1, 11)),
    ]  # fmt: skip
    assert client.rollback(run_name, to_step=0).head == 0
