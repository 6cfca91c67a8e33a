"""A known history on a real server, and what /metrics says of it: the same over both transports."""

import dataclasses

import httpx
import numpy as np
import pytest
from support.rollouts import WIDTH_P, groups, labelled, samples
from support.scraping import scrape
from support.serving import running

from r2m.errors import Code, Problem
from r2m_client import Client, Label, NotFound, Sample
from r2m_service.domain.audit import BASELINE, WINDOW

METHOD = {"width": 16, "learning_rate": 1e-4}


def make(client, name, method=METHOD, **more):
    client.create_run(name, policy_hidden_size=WIDTH_P, method=method, **more)


def broken(sample):
    states = sample.hidden_states.copy()
    states[0, 0] = np.nan
    return dataclasses.replace(sample, id="broken", hidden_states=states)


def test_calls_count_by_what_came_of_them(client, server, run_name):
    before = scrape(server)
    make(client, run_name)
    for seed in range(3):
        client.score(samples(seed), run=run_name)
    client.score(samples(0, hidden=False))
    with pytest.raises(NotFound):
        client.score(samples(0), run="nobody")
    first = client.align(run_name, step=1, groups=groups(1))
    assert client.align(run_name, step=1, groups=groups(1)) == first
    client.run(run_name)
    after = scrape(server)

    def calls(method, code="ok"):
        return after.since(
            before, "r2m_requests_total", transport=client.kind, method=method, code=code
        )

    def timed(method):
        return after.since(
            before, "r2m_request_seconds_count", transport=client.kind, method=method
        )

    assert (calls("create_run"), calls("get_run"), calls("align")) == (1, 1, 2)
    assert (calls("score"), calls("score", "unknown_run"), timed("score")) == (4, 1, 5)
    assert timed("align") == 2
    # Nothing of it was counted elsewhere, and neither probes nor scrapes were.
    httpx.get(f"{server.urls['http']}/readyz")
    httpx.get(f"{server.urls['http']}/livez")
    total = sum(
        value - before.samples.get(key, 0)
        for key, value in scrape(server).samples.items()
        if key[0] == "r2m_requests_total"
    )
    assert total == 9
    # A retry is a call and no step.
    assert after.get("r2m_run_aligns_total", run=run_name, verdict="accepted") == 1


def test_stages_are_those_of_the_answers_header(server, run_name):
    before = scrape(server)
    body = {"samples": [{"id": "a", "prompt": "How?", "response": "Thus."}]}
    answer = httpx.post(f"{server.urls['http']}/v1/score", json=body)
    after = scrape(server)
    told = dict(one.split(";dur=") for one in answer.headers["server-timing"].split(", "))
    assert told.keys() == {"tokenize", "queue", "backbone", "head"}
    for stage, milliseconds in told.items():
        labels = {"transport": "http", "method": "score", "stage": stage}
        seconds = after.since(before, "r2m_request_stage_seconds_sum", **labels)
        assert seconds == pytest.approx(float(milliseconds) / 1000, abs=1e-6)
        assert after.since(before, "r2m_request_stage_seconds_count", **labels) == 1
    whole = after.since(before, "r2m_request_seconds_sum", transport="http", method="score")
    assert sum(float(one) for one in told.values()) / 1000 <= whole


def test_samples_of_a_stream_count_each(server, run_name):
    with Client(server.urls["grpc"], wire_dtype="float32", retries=0) as client:
        make(client, run_name)
        before = scrape(server)
        sent = samples(1)
        with client.score_stream(run=run_name) as stream:
            for one in [*sent, broken(sent[0])]:
                stream.send(one)
            stream.finish()
            assert len(list(stream)) == 5
        after = scrape(server)
    labels = {"transport": "grpc", "method": "stream_sample"}
    assert after.since(before, "r2m_requests_total", code="ok", **labels) == 4
    assert after.since(before, "r2m_requests_total", code="feedback_not_finite", **labels) == 1
    assert after.since(before, "r2m_request_seconds_count", **labels) == 5
    assert after.since(before, "r2m_request_stage_seconds_count", stage="queue", **labels) == 5
    stream = {"transport": "grpc", "method": "score_stream"}
    assert after.since(before, "r2m_requests_total", code="ok", **stream) == 1
    assert after.get("r2m_request_seconds_count", **stream) is None


def test_samples_batches_and_caches(client, server, run_name):
    make(client, run_name)
    before = scrape(server)
    sent = samples(4)
    scores = client.score([*sent, broken(sent[0])], run=run_name).scores
    client.score(sent, run=run_name)
    after = scrape(server)
    assert scores[-1].error.code == "feedback_not_finite"
    good = sum(one.tokens for one in scores[:4])
    assert after.since(before, "r2m_samples_total", result="ok") == 8
    assert after.since(before, "r2m_samples_total", result="failed") == 1
    assert before.get("r2m_sample_errors_total", code="reward_not_finite") == 0
    assert after.since(before, "r2m_sample_errors_total", code="feedback_not_finite") == 1
    assert after.get("r2m_run_samples_total", run=run_name, result="ok") == 8
    assert after.get("r2m_run_samples_total", run=run_name, result="failed") == 1
    usage = client.run(run_name).usage
    assert after.get("r2m_run_tokens_total", run=run_name) == usage.tokens > 2 * good
    assert after.get("r2m_run_feedback_bytes_total", run=run_name) == usage.feedback_bytes
    device = after.get("r2m_run_device_seconds_total", run=run_name)
    assert device == pytest.approx(usage.device_seconds, abs=1e-6)
    assert after.since(before, "r2m_batch_samples_sum") == 9  # what is not finite shows there
    assert after.since(before, "r2m_batch_tokens_sum") == usage.tokens
    assert after.since(before, "r2m_batch_feedback_bytes_sum") == usage.feedback_bytes
    count = after.since(before, "r2m_batch_samples_count")
    assert after.since(before, "r2m_batch_stage_seconds_count", stage="head") == count >= 2
    assert after.since(before, "r2m_cache_hits_total", cache="embeddings") >= 4
    assert after.get("r2m_cache_bytes", cache="embeddings") > 0


def test_what_the_backbone_reads(client, server, run_name):
    def read(kind):
        return scrape(server).get("r2m_backbone_tokens_total", kind=kind)

    def ask(*responses):
        texts = [
            Sample(id=f"s{n}", prompt=run_name, response=one) for n, one in enumerate(responses)
        ]
        return sum(one.tokens for one in client.score(texts).scores)

    text, padding = read("text"), read("padding")
    text += ask("Once.")
    assert (read("text"), read("padding")) == (text, padding)
    ask("Once.")  # from the cache
    assert (read("text"), read("padding")) == (text, padding)
    text += ask("How do I bake bread?", "Bake bread with flour and water.")
    assert read("text") == text
    assert read("padding") > padding


def test_rewards_of_a_run(client, server, run_name):
    make(client, run_name)
    scores = [one for seed in range(5) for one in client.score(samples(seed), run=run_name).scores]
    found = scrape(server)
    series = {
        "fused": [one.reward for one in scores],
        "vanilla": [one.vanilla_reward for one in scores],
    }
    for kind, values in series.items():
        mean = found.get("r2m_run_reward_mean", run=run_name, kind=kind)
        spread = found.get("r2m_run_reward_standard_deviation", run=run_name, kind=kind)
        assert (mean, spread) == pytest.approx((np.mean(values), np.std(values)), rel=1e-6)
    rho = found.get("r2m_run_reward_vanilla_correlation", run=run_name)
    assert rho == pytest.approx(np.corrcoef(*series.values())[0, 1], abs=1e-6)


def equal(found, run, answer):
    """Every gauge that align's answer has a number for."""
    evidence = answer.evidence
    pairs = [
        *((("r2m_run_loss", {"term": term}), getattr(answer.loss, term))
          for term in ("bt", "gre", "kl", "total")),
        (("r2m_run_group_sigma", {}), answer.sigma),
        (("r2m_run_gradient_norm", {}), answer.gradient_norm),
        (("r2m_run_drift_spread_ratio", {}), answer.drift.spread_ratio),
        (("r2m_run_drift_rank_correlation", {}), answer.drift.rank_correlation),
        (("r2m_run_spread_ratio", {}), evidence.spread_ratio),
        (("r2m_run_rank_correlation", {}), evidence.rank_correlation),
        (("r2m_run_length_correlation", {}), evidence.length_correlation),
        (("r2m_run_feedback_gain_ratio", {}), evidence.feedback_gain),
        (("r2m_run_vanilla_agreement_ratio", {}), evidence.vanilla_agreement),
        (("r2m_run_label_agreement_ratio", {}), evidence.label_agreement),
        (("r2m_run_unusable_groups_ratio", {}), evidence.unusable),
    ]  # fmt: skip
    for (name, labels), value in pairs:
        assert found.get(name, run=run, **labels) == value, name
    return sum(value is not None for _, value in pairs)


def test_gauges_of_a_run_are_what_align_answered(client, server, run_name):
    make(client, run_name)
    fresh = scrape(server)
    assert fresh.get("r2m_run_group_sigma", run=run_name) is None  # no step, no number
    assert fresh.get("r2m_run_head_age_steps", run=run_name) == 0
    sent = groups(1)
    labelled = dataclasses.replace(
        sent[0], preferred=(sent[0].samples[1].id, sent[0].samples[0].id)
    )
    answer = client.align(run_name, step=1, groups=[labelled, *sent[1:]])
    assert equal(scrape(server), run_name, answer) >= 11
    answer = client.align(run_name, step=2, groups=groups(2))
    found = scrape(server)
    assert answer.accepted
    assert equal(found, run_name, answer) >= 11

    def gauge(name, **labels):
        return found.get(f"r2m_run_{name}", run=run_name, **labels)

    heads = {alias: gauge("head", alias=alias) for alias in ("live", "previous", "reference")}
    assert heads == {"live": answer.head, "previous": 1, "reference": 0}
    assert (gauge("step"), gauge("head_age_steps"), gauge("head_updates")) == (2, 0, 2)
    assert (gauge("omega_ratio"), gauge("branches"), gauge("frozen")) == (answer.omega, 1, 0)
    assert gauge("info", feedback="policy", profile="guarded") == 1
    client.rollback(run_name, to=1, reason="test")
    assert scrape(server).get("r2m_run_branches", run=run_name) == 2


def test_what_controls_say(client, server, run_name):
    make(client, run_name, {**METHOD, "profile": "labelled", "controls": ["shuffled", "none"]})
    for step in range(1, 12):
        answer = client.align(run_name, step=step, groups=labelled(step, count=3))
        found = scrape(server)
        for arm in answer.controls.arms:
            labels = {"run": run_name, "control": arm.control}
            assert found.get("r2m_run_control_pairs", **labels) == 3 * step == arm.total.pairs
            for name, value in (
                ("control_head_accuracy_ratio", arm.total.head_accuracy),
                ("control_accuracy_ratio", arm.total.accuracy),
                ("control_difference", arm.total.difference),
                ("control_difference_low", arm.total.low),
                ("control_difference_high", arm.total.high),
            ):
                assert found.get(f"r2m_run_{name}", **labels) == value
            said = {"too_few_pairs": None, "no_difference_yet": 0, "feedback_pays": 1}
            said["control_is_better"] = -1
            assert found.get("r2m_run_control_verdict", **labels) == said[arm.verdict]
    assert answer.controls.arms[0].verdict != "too_few_pairs"


def test_rejections_age_the_head_and_freeze(client, server, run_name):
    gate = {"rank_correlation_min": 1.0, "freeze_after": 2}
    make(client, run_name, {"width": 16, "learning_rate": 1.0, "gate": gate})
    for step in (1, 2, 3):
        client.align(run_name, step=step, groups=groups(step))
    found = scrape(server)

    def gauge(name, **labels):
        return found.get(f"r2m_run_{name}", run=run_name, **labels)

    assert (gauge("rejections"), gauge("frozen"), gauge("head_age_steps")) == (2, 1, 3)
    assert gauge("aligns_total", verdict="rejected") == 2
    assert gauge("aligns_total", verdict="frozen") == 1
    assert gauge("head", alias="live") == 0
    assert found.get("r2m_runs", state="frozen") >= 1
    client.unfreeze(run_name, reason="test")
    lifted = scrape(server)
    assert lifted.get("r2m_run_frozen", run=run_name) == 0
    assert lifted.get("r2m_run_rejections", run=run_name) == 0


def test_labels_and_the_audited_gap(client, server, run_name):
    make(client, run_name, {**METHOD, "audit_rate": 1.0, "judge_share": 1.0})
    marked, seed = [], 0
    while len(marked) < BASELINE + WINDOW:
        sent = [dataclasses.replace(one, id=f"{seed}-{one.id}") for one in samples(seed, count=5)]
        sent = [
            dataclasses.replace(one, prompt=f"{one.prompt} ({seed})", group=f"g{seed}")
            for one in sent
        ]
        marked += client.score(sent, run=run_name).scores
        seed += 1
    assert scrape(server).get("r2m_run_labels_waiting", run=run_name) == len(marked)
    grades = [Label(id=one.id, grade=n % 7) for n, one in enumerate(marked)][:-1]
    result = client.add_labels(run_name, grades)
    client.add_labels(run_name, grades[:5])  # known: not taken again
    found = scrape(server)
    assert found.get("r2m_run_labels_total", run=run_name, use="judge") == len(grades)
    assert found.get("r2m_run_labels_total", run=run_name, use="train") == 0
    assert found.get("r2m_run_labels_waiting", run=run_name) == 1
    assert found.get("r2m_run_labels_judged", run=run_name) == result.audit.judged
    assert found.get("r2m_run_audited_gap", run=run_name) == result.audit.gap
    assert result.audit.gap is not None
    assert found.get("r2m_run_audited_gap_cusum", run=run_name) == result.audit.cusum
    assert found.get("r2m_run_audited_gap_alarm", run=run_name) == (result.advice == "stop")


def test_a_restarted_server_shows_the_same_of_its_runs(reward_model, backbone, tmp_path):
    with running(reward_model, tmp_path, backbone=backbone) as server:
        with Client(server.urls["http"], wire_dtype="float32", retries=0) as client:
            make(client, "old")
            answer = client.align("old", step=1, groups=groups(1))
        before = scrape(server)
    with running(reward_model, tmp_path, backbone=backbone) as server:
        after = scrape(server)
    assert equal(after, "old", answer) >= 10
    assert after.get("r2m_run_aligns_total", run="old", verdict="accepted") == 0
    lasting = {
        key: value
        for key, value in before.samples.items()
        if key[0].startswith("r2m_run_") and not key[0].endswith("_total")
    }
    assert {key: after.samples.get(key) for key in lasting} == lasting


def test_a_registry_that_fails_is_a_number_and_the_rest_stays(
    reward_model, backbone, tmp_path, monkeypatch
):
    with running(reward_model, tmp_path, backbone=backbone) as server:
        with Client(server.urls["http"], retries=0) as client:
            make(client, "one")
        assert scrape(server).get("r2m_registry_reachable") == 1

        def fails():
            raise Problem(Code.STORAGE_FAILED, "the disk is gone")

        monkeypatch.setattr(server.parts.registry, "run_states", fails)
        found = scrape(server)
        assert found.get("r2m_registry_reachable") == 0
        assert found.get("r2m_run_step", run="one") is None
        assert found.get("r2m_ready") == 1
        server.parts.draining = True
        assert scrape(server).get("r2m_ready") == 0
        server.parts.draining = False


def test_openmetrics_for_who_asks(server):
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    accept = {"accept": "application/openmetrics-text; version=1.0.0; charset=utf-8"}
    answer = httpx.get(f"{server.urls['http']}/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {one.name for one in text_string_to_metric_families(answer.text)}
    assert {"r2m_requests", "r2m_ready", "r2m_request_seconds"} <= names
