"""The journal and `r2m replay`, on what a real server wrote."""

import contextlib
import dataclasses
import json
from functools import partial

import pytest
from click.testing import CliRunner
from support.rollouts import WIDTH_P, groups, samples
from support.serving import running

from r2m_client import Client, Label
from r2m_service.cli import replay
from r2m_service.journal import writer

METHOD = {
    "width": 16,
    "learning_rate": 5e-4,
    "audit_rate": 1.0,
    "judge_share": 0.0,
    "controls": ["shuffled", "none"],  # of which a journal knows nothing
}
STEPS = 4


@pytest.mark.parametrize(("feedback", "dtype"), [("split", "float32"), ("streamed", "int8")])
def test_whatever_form_the_feedback_took(reward_model, backbone, tmp_path, feedback, dtype):
    """v·c as the trainer told it, and states in 8 bits, give the recorded rewards and losses."""
    journal = tmp_path / "journal"
    given = {"journal": journal, "journal_full": True, "deterministic": True}
    with (
        running(reward_model, tmp_path, backbone=backbone, **given) as server,
        Client(server.urls["grpc"], wire_dtype=dtype, retries=0) as client,
    ):
        client.create_run("one", policy_hidden_size=WIDTH_P, method=METHOD)
        answers = []
        for step in (1, 2):
            client.score(samples(step), run="one", feedback=feedback)
            answers.append(client.align("one", step=step, groups=groups(step), feedback=feedback))
    result, found = run((tmp_path, journal, answers, True))
    assert result.exit_code == 0, result.output
    for one in found["rewards"]:
        assert (one["problem"], one["exact"]) == (None, one["samples"])
    for one, answer in zip(found["aligns"], answers, strict=True):
        assert one["loss"] == pytest.approx(answer.loss.total, rel=1e-6)
        assert one["verdict"] == answer.verdict


@pytest.fixture(scope="module", params=[False, True], ids=["pooled", "full"])
def recorded(request, reward_model, backbone, tmp_path_factory):
    """A journal of four aligns, with and without hidden states; deterministic, so bits count."""
    state = tmp_path_factory.mktemp("state")
    journal = state / "journal"
    given = {"journal": journal, "journal_full": request.param, "deterministic": True}
    with (
        running(reward_model, state, backbone=backbone, **given) as server,
        Client(server.urls["grpc"], wire_dtype="float32", retries=0) as client,
    ):
        client.create_run("one", policy_hidden_size=WIDTH_P, method=METHOD)
        client.create_run("two", feedback="none", method={"profile": "guarded", "width": 16})
        answers = []
        for step in range(1, STEPS + 1):
            sent = [dataclasses.replace(s, group="g") for s in samples(step, group=f"s{step}")]
            scores = client.score(sent, run="one").scores
            if step == 1:
                client.add_labels("one", [Label(id=scores[n].id, grade=float(n)) for n in range(4)])
            client.score(samples(step, hidden=False), run="two")
            answers.append(client.align("one", step=step, groups=groups(step)))
        client.align("two", step=1, groups=groups(1, hidden=False))
    return state, journal, answers, request.param


def run(recorded, *more):
    state, journal, *_ = recorded
    result = CliRunner().invoke(
        replay, [str(journal), "--state", str(state), "--json", *more], catch_exceptions=False
    )
    return result, json.loads(result.stdout) if result.exit_code == 0 else None


def test_every_reward_is_recomputed_to_the_bit(recorded):
    result, found = run(recorded)
    assert result.exit_code == 0, result.output
    assert sum(one["samples"] for one in found["rewards"]) == 4 * STEPS * 2
    for one in found["rewards"]:
        assert one["problem"] is None
        assert one["exact"] == one["samples"]
    assert {(one["run"], one["head"]) for one in found["rewards"]} == {
        *(("one", n) for n in range(STEPS)),
        ("two", 0),
    }


def test_aligns_come_out_as_they_were(recorded):
    _, _, answers, full = recorded
    # Without states, the candidate's drift is measured on its parent's c.
    close = 1e-5 if full else 1e-2
    _, found = run(recorded, "--run", "one")
    assert [one["step"] for one in found["aligns"]] == [1, 2, 3, 4]
    for one, answer in zip(found["aligns"], answers, strict=True):
        assert one["exact"]
        assert one["recorded_verdict"] == one["verdict"] == answer.verdict
        assert one["loss"] == pytest.approx(answer.loss.total, rel=1e-6)
        assert one["spread_ratio"] == pytest.approx(answer.drift.spread_ratio, rel=close)
        assert one["rank_correlation"] == pytest.approx(answer.drift.rank_correlation, abs=close)


def test_other_settings_are_exact_with_full_states_alone(recorded):
    *_, full = recorded
    _, plain = run(recorded, "--run", "one")
    _, other = run(recorded, "--run", "one", "--set", "alpha=0", "--set", "learning_rate=0.02")
    first, *rest = other["aligns"]
    assert first["exact"]
    assert first["loss"] != pytest.approx(plain["aligns"][0]["loss"], rel=1e-3)
    assert [one["exact"] for one in rest] == [full] * (STEPS - 1)


def test_the_gate_can_be_tried(recorded):
    _, found = run(recorded, "--run", "one", "--set", "gate.spread_max=0.9")
    assert {one["verdict"] for one in found["aligns"]} == {"rejected"}
    assert {one["recorded_verdict"] for one in found["aligns"]} == {"accepted"}


def test_tables_and_a_plot(recorded, tmp_path):
    state, journal, *_ = recorded
    picture = tmp_path / "replay.png"
    result = CliRunner().invoke(
        replay, [str(journal), "--state", str(state), "--plot", str(picture)]
    )
    assert result.exit_code == 0, result.output
    assert "LARGEST DIFFERENCE" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_journal_that_was_cut_off_is_read_as_far_as_it_goes(recorded, tmp_path):
    state, journal, *_ = recorded
    copy = tmp_path / "journal"
    copy.mkdir()
    for file in journal.iterdir():
        data = file.read_bytes()
        (copy / file.name).write_bytes(data[: len(data) * 2 // 3])
    result = CliRunner().invoke(replay, [str(copy), "--state", str(state), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert any("was cut off" in one for one in found["cut"])
    assert 0 < sum(one["samples"] for one in found["rewards"]) < 8 * STEPS
    assert "warning: scores-" in result.stderr


def test_what_cannot_be_replayed_is_one_line(recorded, tmp_path):
    state, journal, *_ = recorded
    for arguments, words in (
        ([str(tmp_path), "--state", str(state)], "holds no journal"),
        ([str(journal), "--state", str(tmp_path)], "holds no registry"),
        ([str(journal), "--state", str(state), "--set", "alpha=2"], "alpha is between 0 and 1"),
        ([str(journal), "--state", str(state), "--set", "alpha"], "KEY=VALUE"),
        (
            [str(journal), "--state", str(state), "--set", 'controls=["none"]'],
            "controls changes nothing there; what does is alpha, gate",
        ),
    ):
        result = CliRunner().invoke(replay, arguments)
        assert result.exit_code != 0
        assert words in result.stderr


# ---------------------------------------------------------------------- what is missing is told


@pytest.fixture
def journaled(reward_model, backbone, tmp_path):
    """Serves this test's state with a journal in full; gives the server and a client."""

    @contextlib.contextmanager
    def serve(**changes):
        given = {"journal": tmp_path / "journal", "journal_full": True, "deterministic": True}
        with (
            running(
                reward_model, tmp_path / "state", backbone=backbone, **given, **changes
            ) as server,
            Client(server.urls["grpc"], wire_dtype="float32", retries=0) as client,
        ):
            yield server, client

    return serve


def align(client, *steps, run="r"):
    if steps[0] == 1:
        client.create_run(run, policy_hidden_size=WIDTH_P, method={"width": 16})
    for step in steps:
        assert client.align(run, step=step, groups=groups(step)).accepted


def replayed(tmp_path):
    flags = [str(tmp_path / "journal"), "--state", str(tmp_path / "state"), "--json"]
    result = CliRunner().invoke(replay, flags, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    return [(one["branch"], one["step"], one["exact"]) for one in found["aligns"]], found["cut"]


def test_a_full_disk_costs_the_journal_its_entries_and_no_caller_an_answer(
    journaled, tmp_path, monkeypatch, caplog
):
    with journaled() as (server, client):
        align(client, 1)
        server.parts.journal.close()
        full = partial(open, "/dev/full", "wb")
        monkeypatch.setattr(writer, "open", lambda *_: full(), raising=False)
        align(client, 2)
        assert client.score(samples(1), run="r").rewards[0] is not None
        monkeypatch.undo()
        align(client, 3, 4)
    assert "1 aligns lost" in caplog.text
    assert "4 scores lost" in caplog.text
    # Step 3 went on from a head that the journal does not know the way to.
    steps, _ = replayed(tmp_path)
    assert steps == [("main", 1, True), ("main", 3, False), ("main", 4, False)]


def test_a_clock_that_was_set_back_does_not_mix_up_the_steps(journaled, tmp_path):
    with journaled() as (_, client):
        align(client, 1, 2)
    (first,) = (tmp_path / "journal").glob("aligns-*")
    first.rename(first.with_name(first.name.replace("aligns-20", "aligns-21")))
    with journaled() as (_, client):
        align(client, 3, 4)
    steps, _ = replayed(tmp_path)
    assert steps == [("main", step, True) for step in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("staleness", "left", "said"),
    [
        (1, [("b1", 2, False), ("b1", 3, False)], "optimizer state of head 1 is not kept"),
        (0, [], "branch b1 of run r: its 2 aligns cannot be run again: head 1"),
    ],
    ids=["no optimizer state", "no head"],
)
def test_a_branch_whose_start_was_let_go_leaves_the_others(
    journaled, tmp_path, staleness, left, said
):
    few = {"keep_heads": 2, "keep_every": 0, "max_staleness": staleness, "keep_optimizers": 1}
    with journaled(**few) as (server, client):
        align(client, 1, 2)
        client.rollback("r", to=1)
        for step in (2, 3):  # on b1, from head 1
            align(client, step)
            server.parts.retention.settle()
    steps, cut = replayed(tmp_path)
    assert steps == [("main", 1, True), ("main", 2, True), *left]
    assert any(said in one for one in cut)
