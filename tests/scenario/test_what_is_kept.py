"""What is kept of a run, and what is said of the rest, over both transports."""

import os
import re
import secrets
import threading

import pytest
from safetensors.torch import load
from support.rollouts import WIDTH_P, groups, samples, states
from support.serving import running

from r2m.errors import Code, Problem
from r2m_client import Client, DiskInfo, NotFound, Pair, R2MError, Sample
from r2m_service.application.lookup import read_file
from r2m_service.registry import sweep as sweep_module

METHOD = {"width": 16, "learning_rate": 3e-4}
FEW = {"keep_heads": 2, "keep_every": 4, "max_staleness": 1, "keep_optimizers": 1}


@pytest.fixture(scope="module")
def sparing(reward_model, backbone, tmp_path_factory):
    """A server that keeps little."""
    folder = tmp_path_factory.mktemp("state")
    with running(reward_model, folder, backbone=backbone, **FEW) as one:
        one.state = folder
        yield one


@pytest.fixture(params=["http", "grpc"])
def sparing_client(sparing, request):
    with Client(sparing.urls[request.param], wire_dtype="float32", retries=0) as one:
        yield one


def aligned(client, server, run, steps, *, first=1):
    for step in range(first, steps + 1):
        assert client.align(run, step=step, groups=groups(step)).accepted
        server.parts.retention.settle()


@pytest.fixture
def old(sparing, sparing_client, run_name):
    """A run of six steps: heads 0, 4, 5 and 6 are kept, and 4 has no optimizer state."""
    sparing_client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    aligned(sparing_client, sparing, run_name, 6)
    return run_name


def stored(server, run):
    key = server.parts.registry.run_state(run).run.key
    return {name for name in server.parts.retention._blobs.sizes() if name.startswith(key)}


def test_heads_that_were_let_go_are_listed_and_their_files_are_gone(sparing, sparing_client, old):
    heads = sparing_client.heads(old)
    assert [one.head for one in heads] == [0, 1, 2, 3, 4, 5, 6]
    assert [one.head for one in heads if not one.pruned] == [0, 4, 5, 6]
    assert [one.head for one in heads if one.optimizer_bytes] == [5, 6]
    gone = sparing_client.head(old, 2)
    assert gone == heads[2]
    assert re.match(r"\d{4}-\d\d-\d\dT", gone.pruned_at)
    assert (gone.verdict, gone.parent, len(gone.sha256)) == ("accepted", 1, 64)
    assert heads[4].pruned_at is None
    # Rows and files agree, and the names are those that the sweep knows.
    names = stored(sparing, old)
    assert len(names) == 6
    assert all(sweep_module._OURS.fullmatch(name) for name in names)
    disk = DiskInfo(4, 4 * heads[0].bytes, heads[5].optimizer_bytes + heads[6].optimizer_bytes)
    sizes = sparing.parts.retention._blobs.sizes()
    assert sum(sizes[name] for name in names) == disk.weights_bytes + disk.optimizer_bytes
    assert sparing_client.run(old).disk == disk
    assert next(one for one in sparing_client.runs() if one.run == old).disk == disk


def test_what_needs_the_files_is_refused_by_name(sparing_client, old):
    pair = Pair("p", Sample("a", "Hi", "x", states(1)), Sample("b", "Hi", "y", states(2)))
    for call in (
        lambda: sparing_client.score(samples(1), run=old, head=2),
        lambda: sparing_client.score(samples(1), run=old, step=4),
        lambda: sparing_client.head_weights(old, 2),
        lambda: sparing_client.evaluate(old, [pair], heads=["live", 2]),
        lambda: sparing_client.set_alias(old, "mine", 2),
        lambda: sparing_client.rollback(old, to=2),
        lambda: sparing_client.rollback(old, to_step=2),
    ):
        with pytest.raises(NotFound, match=r"head [23] ") as caught:
            call()
        error = caught.value
        assert (error.code, error.status, error.retryable) == ("head_pruned", 410, False)


def test_steps_within_the_staleness_are_scored(sparing_client, old):
    # Step 7 is the next; step 6 is scored by head 5.
    assert sparing_client.score(samples(1), run=old, step=7).head == 6
    assert sparing_client.score(samples(1), run=old, step=6).head == 5
    # An answered step stays answered, whatever became of its head.
    assert sparing_client.align(old, step=2, groups=groups(2)).head == 2


def test_rollback_needs_the_optimizer_state_and_says_where_one_can_go(sparing, sparing_client, old):
    with pytest.raises(NotFound) as caught:
        sparing_client.rollback(old, to=4)
    said = caught.value.message
    assert "optimizer state of head 4 is not kept" in said
    assert "can go back to 6, 5, 0" in said
    assert caught.value.field == "to"
    assert sparing_client.score(samples(1), run=old, head=4).head == 4
    sparing_client.rollback(old, to=5)
    aligned(sparing_client, sparing, old, 6, first=6)
    assert sparing_client.rollback(old, to=0).next_step == 1
    aligned(sparing_client, sparing, old, 1)


def test_an_alias_keeps_a_head_with_its_optimizer_state(sparing, sparing_client, run_name):
    sparing_client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    aligned(sparing_client, sparing, run_name, 1)
    sparing_client.set_alias(run_name, "checkpoint-1", 1)
    aligned(sparing_client, sparing, run_name, 7, first=2)
    assert load(sparing_client.head_weights(run_name, "checkpoint-1"))
    assert sparing_client.rollback(run_name, to=1).next_step == 2
    aligned(sparing_client, sparing, run_name, 2, first=2)


def test_a_score_that_holds_the_head_goes_on(sparing, run_name):
    with Client(sparing.urls["grpc"], wire_dtype="float32", retries=0) as client:
        client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
        aligned(client, sparing, run_name, 1)
        one, two = samples(1, count=2)
        with client.score_stream(run=run_name) as stream:
            stream.send(one)
            first = next(stream)
            aligned(client, sparing, run_name, 6, first=2)
            stream.send(two)
            stream.finish()
            (second,) = stream
        assert stream.opened.head == 1
        assert first.error is second.error is None
        assert client.head(run_name, 1).pruned
        with (
            pytest.raises(NotFound, match="head_pruned"),
            client.score_stream(run=run_name, head=1),
        ):
            pass


def test_a_file_that_goes_while_it_is_read_was_let_go_not_damaged(sparing, sparing_client, old):
    """As on a replica that read the row before another one pruned the head."""
    registry, blobs = sparing.parts.registry, sparing.parts.retention._blobs
    now = registry.head(old, 2)
    before = registry.head(old, 4)
    with pytest.raises(Problem) as caught:
        read_file(registry, blobs, old, now, now.weights)
    assert caught.value.code is Code.HEAD_PRUNED
    assert "retention rule" in caught.value.message
    kept = blobs.get(before.weights)
    blobs.delete(before.weights.key)
    with pytest.raises(Problem) as caught:
        read_file(registry, blobs, old, before, before.weights)
    assert caught.value.code is Code.HEAD_DAMAGED
    blobs.put(before.weights.key, kept)


def test_the_start_applies_other_numbers(reward_model, backbone, tmp_path):
    def opened(**changes):
        return running(reward_model, tmp_path, backbone=backbone, **changes)

    with opened() as server, Client(server.urls["http"], retries=0) as client:
        client.create_run("r", policy_hidden_size=WIDTH_P, method=METHOD)
        aligned(client, server, "r", 5)
        assert not any(one.pruned for one in client.heads("r"))
    with opened(**FEW) as server, Client(server.urls["http"], retries=0) as client:
        server.parts.retention.settle()
        assert [one.head for one in client.heads("r") if not one.pruned] == [0, 4, 5]
        assert len(stored(server, "r")) == 5
        aligned(client, server, "r", 6, first=6)


def test_what_cannot_be_removed_waits_for_the_next_start(
    reward_model, backbone, tmp_path, monkeypatch, caplog
):
    def fail(*_):
        raise OSError(5, "Input/output error")

    with (
        running(reward_model, tmp_path, backbone=backbone, **FEW) as server,
        Client(server.urls["http"], retries=0) as client,
    ):
        client.create_run("r", policy_hidden_size=WIDTH_P, method=METHOD)
        monkeypatch.setattr(server.parts.retention._blobs._files, "remove", fail)
        aligned(client, server, "r", 6)
        assert "Input/output error" in caplog.text
        assert [one.head for one in client.heads("r") if not one.pruned] == [0, 4, 5, 6]
        assert len(stored(server, "r")) == 13
    monkeypatch.undo()
    caplog.set_level("INFO", "r2m")
    with running(reward_model, tmp_path, backbone=backbone, **FEW) as server:
        assert len(stored(server, "r")) == 6
    assert "cleared 7 files" in caplog.text


@pytest.mark.skipif("R2M_TEST_DATABASE_URL" not in os.environ, reason="needs PostgreSQL")
def test_replicas_never_meet_a_file_that_another_removed(reward_model, backbone, tmp_path):
    """Two servers on one PostgreSQL database and one store; one aligns and lets go, one scores."""
    place = {"registry": os.environ["R2M_TEST_DATABASE_URL"], "blobs": str(tmp_path / "blobs")}
    least = {"keep_heads": 1, "keep_every": 0, "max_staleness": 0, "keep_optimizers": 0}
    run, done, codes = f"r-{secrets.token_hex(6)}", threading.Event(), set()

    def score(url):
        with Client(url, retries=0) as client:
            while not done.is_set():
                # Live as it is now, and a head that is about to go.
                for head in ("live", max(client.run(run).head - 2, 0)):
                    try:
                        found = client.score(samples(1, count=1), run=run, head=head)
                        assert found.scores[0].error is None
                        codes.add(None)
                    except R2MError as error:
                        codes.add(error.code)

    with (
        # No cache of heads: every score reads its file.
        running(reward_model, tmp_path, backbone=backbone, head_cache_bytes=0, **place) as one,
        running(reward_model, tmp_path, backbone=backbone, **place, **least) as two,
        Client(two.urls["grpc"], retries=0) as client,
    ):
        client.create_run(run, policy_hidden_size=WIDTH_P, method=METHOD)
        scorer = threading.Thread(target=score, args=(one.urls["http"],))
        scorer.start()
        try:
            for step in range(1, 31):
                client.align(run, step=step, groups=groups(step % 5, count=1))
        finally:
            done.set()
            scorer.join()
        assert None in codes
        assert codes <= {None, "head_pruned"}
        two.parts.retention.settle()
        assert client.run(run).disk.heads == 3
        # Replicas take turns; whoever is late is told to try again or has the answer.
        with Client(one.urls["http"], retries=0) as other:
            assert other.align(run, step=31, groups=groups(1)).accepted
            assert client.align(run, step=32, groups=groups(2)).accepted
