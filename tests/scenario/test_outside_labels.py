"""Outside labels: marked at score, labelled later, trained on or judged by: over HTTP and gRPC."""

import dataclasses

import pytest
from support.rollouts import WIDTH_P, groups, samples

from r2m_client import InvalidRequest, Label, NotFound
from r2m_service.domain.audit import BASELINE, WINDOW

AUDITED = {"width": 16, "audit_rate": 1.0, "learning_rate": 1e-3}
TRAINS = {**AUDITED, "judge_share": 0.0}
JUDGES = {**AUDITED, "judge_share": 1.0}


def make(client, name, method, **more):
    client.create_run(name, policy_hidden_size=WIDTH_P, method=method, **more)


def scored(client, run, seed, *, group=None, count=4):
    """Samples with ids of their own, and their scores."""
    group = group or f"g{seed}"
    sent = samples(seed, group=group, count=count)
    sent = [dataclasses.replace(one, group=group) for one in sent]
    return sent, client.score(sent, run=run).scores


def test_marks_follow_the_rate_and_the_group(client, run_name):
    make(client, run_name, {**AUDITED, "audit_rate": 0.3})
    marked = []
    for seed in range(30):
        _, scores = scored(client, run_name, seed)
        assert len({one.audit for one in scores}) == 1  # a group is marked whole, or not
        marked.append(scores[0].audit)
    assert 2 <= sum(marked) <= 18
    _, again = scored(client, run_name, marked.index(True))
    assert all(one.audit for one in again)
    waiting = client.samples(run_name, limit=1000, waiting=True).samples
    assert len(waiting) == 4 * sum(marked)
    older = client.score(samples(marked.index(True)), run=run_name, head=0)
    assert older.head == 0


def test_nothing_is_marked_without_a_rate(client, run_name):
    make(client, run_name, {"width": 16})
    _, scores = scored(client, run_name, 1)
    assert not any(one.audit for one in scores)
    assert client.samples(run_name).samples == ()


def test_labels_come_late_out_of_order_and_again(client, run_name):
    make(client, run_name, TRAINS)
    sent, scores = scored(client, run_name, 1)
    assert all(one.audit for one in scores)
    labels = [
        Label(id=sent[2].id, grade=0.5, source="alice"),
        Label(id="stranger", grade=1.0),
        Label(chosen=sent[3].id, rejected=sent[0].id),
        Label(chosen=sent[3].id, rejected=sent[3].id),
        Label(id=sent[1].id),
    ]
    result = client.add_labels(run_name, labels)
    assert [one.use for one in result.labels] == ["train", None, "train", None, None]
    errors = [one.error and (one.error.code, one.error.field) for one in result.labels]
    assert errors == [
        None,
        ("unknown_sample", "labels[1].id"),
        None,
        ("invalid_request", "labels[3]"),
        ("invalid_request", "labels[4]"),
    ]
    assert result.audit.waiting == 1
    again = client.add_labels(run_name, labels[:1])
    assert (again.labels[0].known, again.labels[0].error) == (True, None)
    other = client.add_labels(run_name, [Label(id=sent[2].id, grade=0.6)])
    assert other.labels[0].error.code == "label_conflict"
    kept = {one.id: one for one in client.samples(run_name).samples}
    assert kept[sent[2].id].labels[0].grade == 0.5
    assert kept[sent[2].id].labels[0].source == "alice"
    assert kept[sent[3].id].labels[0].rejected == sent[0].id
    assert kept[sent[1].id].text["response"] == sent[1].response
    assert kept[sent[1].id].reward == scores[1].reward


def test_pages_of_samples(client, run_name):
    make(client, run_name, TRAINS)
    for seed in range(3):
        scored(client, run_name, seed)
    found, after = [], 0
    while after is not None:
        page = client.samples(run_name, after=after, limit=5)
        found += [one.id for one in page.samples]
        after = page.next
    assert len(found) == len(set(found)) == 12
    with pytest.raises(InvalidRequest):
        client.samples(run_name, limit=0)
    with pytest.raises(NotFound):
        client.samples("nobody")


def test_an_id_that_other_content_has_is_not_marked(client, run_name):
    """Its label would be taken for the first one's."""
    make(client, run_name, TRAINS)
    first, _ = scored(client, run_name, 1)
    changed = [dataclasses.replace(one, response=f"{one.response}!") for one in first]
    assert not any(one.audit for one in client.score(changed, run=run_name).scores)
    assert all(one.audit for one in client.score(first, run=run_name).scores)


def test_the_labelled_profile_learns_from_labels_alone(client, run_name):
    make(client, run_name, {"profile": "labelled", **TRAINS, "learning_rate": 0.05})
    sent, before = scored(client, run_name, 1)
    idle = client.align(run_name, step=1, groups=groups(1))
    assert (idle.verdict, idle.head) == ("skipped", 0)
    assert idle.groups.skipped_because == {"unlabelled": 3}
    best, worst = before[0], before[1]
    if best.reward > worst.reward:
        best, worst = worst, best
    client.add_labels(run_name, [Label(id=best.id, grade=1.0), Label(id=worst.id, grade=0.0)])
    for step in range(2, 8):
        answer = client.align(run_name, step=step, groups=groups(step))
        assert answer.verdict == "accepted", answer.reason
        assert (answer.groups.replayed, answer.groups.used) == (1, 0)
    after = {one.id: one.reward for one in client.score(sent, run=run_name).scores}
    assert after[best.id] - after[worst.id] > best.reward - worst.reward


def test_guarded_runs_replay_beside_their_pseudo_labels(client, run_name):
    make(client, run_name, TRAINS)
    sent, _ = scored(client, run_name, 1)
    client.add_labels(run_name, [Label(chosen=sent[0].id, rejected=sent[1].id)])
    answer = client.align(run_name, step=1, groups=groups(1))
    assert (answer.groups.pseudo, answer.groups.replayed) == (3, 1)
    assert client.align(run_name, step=1, groups=groups(1)) == answer


def test_what_judges_is_never_replayed(client, run_name):
    make(client, run_name, JUDGES)
    sent, _ = scored(client, run_name, 1)
    result = client.add_labels(run_name, [Label(chosen=sent[0].id, rejected=sent[1].id)])
    assert result.labels[0].use == "judge"
    assert client.align(run_name, step=1, groups=groups(1)).groups.replayed == 0
    labelled = dataclasses.replace(groups(2)[0], preferred=("g0-0", "g0-1"))
    answer = client.align(run_name, step=2, groups=[labelled])
    assert (answer.groups.withheld, answer.groups.labelled) == (1, 0)


def test_backbone_runs_learn_from_labels_beside_the_trainer(client, run_name):
    method = {"profile": "labelled", **TRAINS, "learning_rate": 0.05}
    client.create_run(run_name, feedback="backbone", method=method)
    sent = samples(1, hidden=False)
    sent = [dataclasses.replace(one, group="g") for one in sent]
    assert all(one.audit for one in client.score(sent, run=run_name).scores)
    client.add_labels(run_name, [Label(chosen=sent[0].id, rejected=sent[1].id)])
    assert client.align(run_name, step=1, groups=[]).verdict == "accepted"


def test_the_audited_gap_warns_stops_and_freezes(client, run_name):
    """Rewards stay as they were while grades fall by three standard deviations."""
    make(client, run_name, {**JUDGES, "freeze_on_alarm": True})
    number = 0

    def grade(shift, count):
        nonlocal number
        labels = []
        while len(labels) < count:
            sent, _ = scored(client, run_name, number, group=f"u{number}", count=8)
            labels += [Label(id=one.id, grade=float(n % 2) - shift) for n, one in enumerate(sent)]
            number += 1
        return client.add_labels(run_name, labels)

    result = grade(0.0, BASELINE)
    assert (result.advice, result.audit.judged) == ("ok", BASELINE)
    result = grade(0.0, WINDOW)
    assert result.audit.gap == pytest.approx(0.0, abs=1.0)
    for _ in range(4):
        result = grade(1.5, WINDOW)
    assert result.advice == "stop"
    assert result.audit.gap > 2
    run = client.run(run_name)
    assert "audited gap" in run.frozen
    assert run.advice == "stop"
    assert client.score(samples(999), run=run_name).advice == "stop"
    answer = client.align(run_name, step=1, groups=groups(1))
    assert (answer.verdict, answer.advice) == ("frozen", "stop")
    lifted = client.unfreeze(run_name)
    assert (lifted.frozen, lifted.advice) == (None, "ok")


def test_what_is_kept_is_bounded(reward_model, backbone, tmp_path):
    from support.serving import running

    from r2m_client import Client

    bound = {"label_samples": 10, "label_bytes": 6000}
    with (
        running(reward_model, tmp_path, backbone=backbone, **bound) as server,
        Client(server.urls["http"], retries=0) as client,
    ):
        make(client, "small", TRAINS)
        for seed in range(8):
            sent, scores = scored(client, "small", seed)
            assert all(one.audit for one in scores[-1:])
        kept = client.samples("small", limit=1000).samples
        assert 1 <= len(kept) <= 10
        assert kept[-1].id == sent[-1].id
        files = list((tmp_path / "blobs").rglob("*.bin"))
        assert len(files) == len(kept)
        assert sum(one.stat().st_size for one in files) <= 6000
        result = client.add_labels("small", [Label(id="g0-0", grade=1.0)])
        assert result.labels[0].error.code == "unknown_sample"
