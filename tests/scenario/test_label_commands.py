"""`r2m labels`, `anchors`, `freeze`, `rollback`, `alias`: against a real server."""

import json

import pytest
from click.testing import CliRunner
from support.rollouts import WIDTH_P, groups, samples

from r2m_client import Client
from r2m_client.cli import main

METHOD = {"width": 16, "audit_rate": 1.0, "judge_share": 0.0}


@pytest.fixture
def r2m(server, monkeypatch):
    monkeypatch.setenv("R2M_URL", server.urls["http"])
    return lambda *args, **kwargs: CliRunner().invoke(main, args, **kwargs)


@pytest.fixture
def run(server, run_name):
    with Client(server.urls["http"], retries=0) as client:
        client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
        client.score(samples(1, group="q"), run=run_name)
    return run_name


def test_labels_go_out_and_come_back(r2m, run, tmp_path):
    lines = [json.loads(line) for line in r2m("labels", "export", run).stdout.splitlines()]
    assert [one["id"] for one in lines] == ["q-0", "q-1", "q-2", "q-3"]
    assert lines[0]["text"]["prompt"]
    graded = tmp_path / "graded.jsonl"
    graded.write_text(
        "".join(json.dumps({"id": one["id"], "grade": n}) + "\n" for n, one in enumerate(lines[:3]))
    )
    result = r2m("labels", "import", run, str(graded), "--source", "judge-7")
    assert result.exit_code == 0
    assert result.stdout == "3 new, 0 known before, 0 refused; advice: ok\n"
    again = r2m("labels", "import", run, input=graded.read_text())
    assert again.stdout.startswith("0 new, 3 known before")
    left = r2m("labels", "export", run).stdout.splitlines()
    assert [json.loads(line)["id"] for line in left] == ["q-3"]
    everything = r2m("labels", "export", run, "--all").stdout.splitlines()
    assert json.loads(everything[0])["labels"][0]["source"] == "judge-7"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1 is not JSON"),
        ('{"id": "q-0"}', "line 1 is neither id and grade"),
        ('{"id": "q-0", "score": 1}', "'score' is not one of"),
    ],
)
def test_lines_that_are_no_labels(r2m, run, line, words):
    result = r2m("labels", "import", run, input=line)
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_refused_label_is_told_and_the_others_are_taken(r2m, run):
    lines = '{"id": "stranger", "grade": 1}\n{"id": "q-0", "grade": 1}\n'
    result = r2m("labels", "import", run, input=lines)
    assert result.exit_code == 1
    assert "1 new, 0 known before, 1 refused" in result.stdout
    assert "stranger: unknown_sample" in result.stderr


def test_anchors(r2m, run):
    pair = {"id": "p", "prompt": "2 + 2?", "chosen": "4.", "rejected": "5."}
    put = r2m("anchors", "put", run, "--reason", "sums", input=json.dumps(pair))
    assert put.stdout == f"set 1 of {run}: 1 pairs, 0 looks so far, due at step 10\n"
    assert r2m("anchors", "show", run).stdout == put.stdout
    shown = json.loads(r2m("anchors", "show", run, "--json").stdout)
    assert (shown["set"], shown["next_step"]) == (1, 10)
    refused = r2m("anchors", "put", run, input=json.dumps({**pair, "rejected": "4."}))
    assert refused.exit_code == 1
    assert "same text" in refused.stderr
    assert "line 1 has no 'chosen'" in r2m("anchors", "put", run, input="{}").stderr


def test_freeze(r2m, run):
    assert r2m("freeze", run, "--reason", "tea").stdout == f"{run} is frozen: tea\n"
    assert r2m("unfreeze", run).stdout == f"{run} learns again, from step 1\n"


def test_rollback_and_alias(r2m, server, run):
    with Client(server.urls["http"], retries=0) as client:
        for step in (1, 2):
            client.align(run, step=step, groups=groups(step))
        assert r2m("alias", run, "best", "1").stdout == f"best of {run} points at head 1\n"
        moved = r2m("alias", run, "best", "2", "--expect", "1").stdout
        assert moved == f"best of {run} points at head 2, before at 1\n"
        late = r2m("alias", run, "best", "0", "--expect", "1")
        assert (late.exit_code, "alias_moved" in late.stderr) == (1, True)
        back = r2m("rollback", run, "--to-step", "1", "--reason", "why not")
        assert back.stdout == f"{run} is on branch b1 now: head 1 is live, the next step is 2\n"
        assert r2m("rollback", run, "--to", "0").stdout.endswith("the next step is 1\n")
        assert [one.reason for one in client.run(run).branches][1] == "why not"
    for wrong in ((), ("--to", "1", "--to-step", "1")):
        result = r2m("rollback", run, *wrong)
        assert (result.exit_code, "either --to or --to-step" in result.stderr) == (2, True)
    assert "unknown_head" in r2m("rollback", run, "--to", "99").stderr
