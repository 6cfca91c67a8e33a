"""The `r2m` command."""

import hashlib
import json
import sys
from collections import Counter
from dataclasses import asdict
from importlib.metadata import EntryPoint

import click
import numpy as np
import pytest
from click.testing import CliRunner
from client_servers import HEAD, RUN, WEIGHTS, Refuse
from safetensors.numpy import save_file

import r2m_client.cli as cli
from r2m.errors import Code, Problem
from r2m_client import Client, HeadInfo
from r2m_client._reading import read
from r2m_client.cli._common import Progress
from r2m_client.cli._lineage import draw
from r2m_client.cli._texts import pairs


@pytest.fixture
def r2m(http_server, monkeypatch):
    """Runs the command against the fake server; the URL comes from the environment."""
    monkeypatch.setenv("R2M_URL", http_server.url)
    return lambda *args, **kwargs: CliRunner().invoke(cli.main, args, **kwargs)


@pytest.fixture
def added(monkeypatch):
    """Replaces what installed packages add."""

    def add(**points):
        found = {
            name: EntryPoint(name=name, value=value, group=cli.GROUP)
            for name, value in points.items()
        }
        monkeypatch.setattr(cli, "plugins", lambda: found)

    return add


def test_version(r2m):
    result = r2m("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("r2m, version ")


def test_help_loads_nothing_that_was_added(r2m, added):
    added(serve="r2m_service.no_such_module:serve", other="no_such_package:command")
    result = r2m("--help")
    assert result.exit_code == 0
    for words in ("heads  ", "runs  ", "score  ", "Serve a reward model", "R2M_URL"):
        assert words in result.stdout
    assert "From no_such_package:command." in result.stdout
    assert "r2m heads log my-run\n" in result.stdout  # the examples keep their lines


def test_serve_without_the_service(r2m, added):
    for points in ({"serve": "r2m_service.no_such_module:serve"}, {}):
        added(**points)
        result = r2m("serve", "--model", "x")
        assert result.exit_code == 1
        assert "pip install '.[service]'" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_broken_addition_is_one_line(r2m, added):
    added(gone="no_such_package:command", odd="json:dumps", missing="json:no_such_name")
    for name, words in (
        ("gone", "ModuleNotFoundError"),
        ("odd", "no click command"),
        ("missing", "AttributeError"),
    ):
        result = r2m(name)
        assert result.exit_code == 1
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


@click.command()
@click.option("--loud", is_flag=True)
def greet(loud):
    """Say hello."""
    click.echo("HELLO" if loud else "hello")


def test_an_added_command_runs(r2m, added):
    added(greet=f"{__name__}:greet")
    assert r2m("greet", "--loud").stdout == "HELLO\n"
    assert "Say hello." in r2m("greet", "--help").stdout


def test_an_unknown_command(r2m, added):
    added()
    result = r2m("fly")
    assert result.exit_code == 2
    assert "No such command" in result.stderr


# ------------------------------------------------------------------ runs and heads


def test_runs(r2m, script):
    script.steps.append({"runs": [RUN, {**RUN, "run": "a-longer-name", "archived": True}]})
    lines = r2m("runs").stdout.splitlines()
    assert lines[0].split() == [
        "RUN", "BRANCH", "STEP", "HEAD", "FEEDBACK", "WIDTH", "PROFILE", "DISK", "CREATED",
    ]  # fmt: skip
    assert lines[1].split() == [
        "tldr", "main", "2", "1", "policy", "4", "guarded", "402.7", "MB",
        "2026-11-20T10:00:00Z",
    ]  # fmt: skip
    script.steps.append({"runs": [{key: RUN[key] for key in RUN if key != "disk"}]})
    assert r2m("runs").stdout.splitlines()[1].split()[-2:] == ["-", "2026-11-20T10:00:00Z"]
    assert lines[2].split()[:2] == ["a-longer-name", "archived"]
    assert lines[1].index("main") == lines[2].index("archived")


def test_runs_as_json(r2m):
    found = json.loads(r2m("runs", "--json").stdout)
    assert found[0]["run"] == "tldr"
    assert found[0]["branches"][0] == {
        "branch": "main",
        "head": 1,
        "step": 2,
        "origin_branch": None,
        "origin_head": None,
        "origin_step": None,
        "reason": None,
    }


def test_one_run_at_large(r2m, script):
    lines = r2m("runs", "tldr").stdout.splitlines()
    shown = dict(line.split(None, 1) for line in lines[: lines.index("")])
    assert (shown["run"], shown["next_step"]) == ("tldr", "3")
    assert shown["method.profile"] == "guarded"
    assert "branches" not in shown
    branch = {
        **RUN["branches"][0], "branch": "b1", "origin_branch": "main", "origin_head": 1,
        "origin_step": 2, "reason": "resumed",
    }  # fmt: skip
    script.steps.append({**RUN, "branches": [RUN["branches"][0], branch], "frozen": "tea"})
    again = r2m("runs", "tldr").stdout
    assert "frozen                             tea\n" in again
    table = again.split("\n\n")[1].splitlines()
    assert [line.split() for line in table] == [
        ["BRANCH", "STEP", "HEAD", "FROM", "REASON"],
        ["main", "2", "1", "-"],
        ["b1", "2", "1", "head", "1,", "step", "2", "of", "main", "resumed"],
    ]
    assert json.loads(r2m("runs", "tldr", "--json").stdout)["next_step"] == 3


def test_a_run_with_controls(r2m, script):
    total = {"pairs": 42, "head_accuracy": 0.7, "accuracy": 0.5, "difference": 0.2, "low": 0.05,
             "high": 0.35, "discordant": 9}  # fmt: skip
    arms = [
        {"control": "none", "verdict": "feedback_pays", "total": total, "note": ""},
        {"control": "shuffled", "verdict": "not_available", "total": {"pairs": 0}, "note": "gone"},
    ]
    script.steps.append({**RUN, "live": {"t": 3, "controls": {"arms": arms}}})
    shown = r2m("runs", "tldr").stdout
    assert "controls." not in shown
    _, _, table, _ = shown.split("\n\n")
    header, pays, gone = table.splitlines()
    assert header.split("  ")[0] == "CONTROL"
    assert pays.split() == [
        "none", "feedback", "pays", "42", "70.0", "50.0", "+20.0", "+5.0", "to", "+35.0",
    ]  # fmt: skip
    assert gone.split() == [
        "shuffled",
        "not",
        "available",
        "0",
        "-",
        "-",
        "-",
        "-",
        "to",
        "-",
        "gone",
    ]


def test_no_runs(r2m, script):
    script.steps += [{"runs": []}, {"runs": []}]
    assert r2m("runs").stdout == "no runs yet\n"
    assert r2m("runs", "--json").stdout == "[]\n"


def test_errors_are_one_line(r2m, script):
    script.steps.append(Refuse(Problem(Code.UNKNOWN_RUN, "no run\nhas this name")))
    result = r2m("heads", "log", "tldr")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "Error: unknown_run: no run has this name\n"


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:1"])
def test_a_server_that_is_not_there(r2m, url, monkeypatch):
    monkeypatch.setattr(Client, "_sleep", staticmethod(lambda pause: None))
    result = r2m("runs", "--url", url)
    assert result.exit_code == 1
    assert url in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_heads_show(r2m, script):
    lines = r2m("heads", "show", "tldr", "live").stdout.splitlines()
    facts = {line.split(None, 1)[0]: line.split(None, 1)[1] for line in lines}
    assert facts["verdict"] == "accepted"
    assert facts["parent"] == "0"
    assert facts["metrics.kl"] == "0.25"
    assert facts["aliases"] == "live"
    assert "reason" not in facts
    assert script.seen[0].request == {"run": "tldr", "head": "live"}
    assert json.loads(r2m("heads", "show", "tldr", "1", "--json").stdout) == HEAD


def test_heads_of_a_run_with_controls(r2m, script):
    def arms(pairs):
        total = {"pairs": pairs, "head_accuracy": 0.7, "accuracy": 0.5}
        return {"arms": [{"control": "none", "verdict": "too_few_pairs", "total": total}]}

    with_them = [{**HEAD, "head": n, "metrics": {"controls": arms(n)}} for n in (1, 2)]
    script.steps.append(with_them[0])
    shown = r2m("heads", "show", "tldr", "1").stdout
    assert "metrics.controls" not in shown
    assert shown.splitlines()[-1].split()[:6] == ["none", "too", "few", "pairs", "1", "70.0"]
    script.steps += [*with_them, {"heads": with_them}, WEIGHTS, WEIGHTS]
    shown = r2m("heads", "diff", "tldr", "1", "2").stdout
    (row,) = [line for line in shown.splitlines() if "controls" in line]
    assert row.split() == ["controls.none.total.pairs", "1", "2"]


def pulled():
    return {**HEAD, "sha256": hashlib.sha256(WEIGHTS).hexdigest()}


def test_heads_pull(r2m, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script.steps += [pulled(), WEIGHTS]
    result = r2m("heads", "pull", "tldr", "live")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert [file.name for file in tmp_path.iterdir()] == ["tldr-1.safetensors"]
    assert (tmp_path / "tldr-1.safetensors").read_bytes() == WEIGHTS
    assert script.seen[1].request == {"run": "tldr", "head": "1"}  # not `live`: it may have moved


def test_heads_pull_elsewhere(r2m, script, tmp_path):
    script.steps += [pulled(), WEIGHTS, pulled(), WEIGHTS, pulled(), WEIGHTS]
    assert r2m("heads", "pull", "tldr", "1", "-o", str(tmp_path / "x")).exit_code == 0
    assert (tmp_path / "x").read_bytes() == WEIGHTS
    assert r2m("heads", "pull", "tldr", "1", "-o", "-").stdout_bytes == WEIGHTS
    result = r2m("heads", "pull", "tldr", "1", "-o", str(tmp_path / "no" / "x"))
    assert result.exit_code == 1
    assert "cannot write" in result.stderr


def test_heads_pull_compares_the_hash(r2m, script, tmp_path):
    target = tmp_path / "x"
    target.write_text("old")
    result = r2m("heads", "pull", "tldr", "1", "-o", str(target))
    assert result.exit_code == 1
    assert "SHA-256" in result.stderr
    assert target.read_text() == "old"


# ------------------------------------------------------------------ the lineage


def version(number, parent, **facts):
    plain = {"parent": parent, "aliases": [], "pruned": False}
    return read(HeadInfo, {**HEAD, "head": number, **plain, **facts})


def rejected(number, parent):
    return version(number, parent, accepted=False, verdict="rejected", reason="drift\n0.4")


def graph(*heads):
    lines = draw(heads)
    width = max(len(line.split("  ")[0]) for line in lines)
    return [line[:width].rstrip() for line in lines]


def test_a_straight_line():
    lines = draw(
        [
            version(0, None, step=0, aliases=["reference"]),
            version(1, 0, step=2, omega=0.6126, aliases=["live", "best"], branch="b1"),
            version(2, 1, step=3, pruned=True),
        ]
    )
    assert lines == [
        "●  2 ← 1  step 3 of main  ω 0.600  accepted  pruned",
        "●  1 ← 0  step 2 of b1  ω 0.613  accepted  (live, best)",
        "●  0  step 0 of main  ω 0.600  accepted  (reference)",
    ]


def test_a_rejected_candidate_hangs_beside():
    heads = [version(0, None), rejected(1, 0), version(2, 0), version(3, 2)]
    assert graph(*heads) == ["●", "●", "│ ○", "├─╯", "●"]
    assert "1 ← 0  step 1 of main  ω 0.600  rejected: drift 0.4" in draw(heads)[2]


def test_lanes_join_across_others():
    heads = [version(0, None), version(1, 0), version(2, 1), rejected(3, 0), version(4, 1)]
    assert graph(*heads) == ["●", "│ ○", "│ │ ●", "├─┼─╯", "● │", "├─╯", "●"]
    three = [version(0, None), rejected(1, 0), rejected(2, 0), version(3, 0)]
    assert graph(*three) == ["●", "│ ○", "│ │ ○", "├─┴─╯", "●"]


def test_a_lane_that_ended_is_used_again():
    heads = [version(0, None), version(1, None), version(2, 0), version(3, 1), version(4, 0)]
    assert graph(*heads) == ["●", "│ ●", "│ │ ●", "│ ● │", "├───╯", "●"]


def test_many_heads_in_any_order():
    heads = [version(0, None), *(version(n, n - 1) for n in range(1, 300))]
    lines = draw(reversed(heads))
    assert len(lines) == 300
    assert all(line.startswith("●  ") for line in lines)
    assert draw([]) == []


def test_heads_log(r2m):
    result = r2m("heads", "log", "tldr")
    assert result.stdout.splitlines()[0].startswith("●  1 ← 0  step 1 of main")
    found = json.loads(r2m("heads", "log", "tldr", "--json").stdout)
    assert [head["head"] for head in found] == [0, 1]
    assert found[1] == {**asdict(read(HeadInfo, HEAD)), "aliases": ["live"]}


# ------------------------------------------------------------------ score


def lines_of(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_score_of_one_text(r2m, script):
    result = r2m("score", "--prompt", "why?", "--response", "☃", "--raw")
    assert lines_of(result) == [{"id": "1", "vanilla_reward": 0.0}]
    assert script.seen[0].request["samples"] == [
        {"id": "1", "prompt": "why?", "response": "☃", "format": "raw"}
    ]


def test_prompt_and_response_go_together(r2m):
    result = r2m("score", "--prompt", "why?")
    assert result.exit_code == 2
    assert "go together" in result.stderr


def test_score_of_lines_keeps_to_the_head_of_the_first(r2m, script):
    lines = [{"prompt": "p", "response": str(i)} for i in range(5)]
    lines[1] |= {"id": "mine", "format": "raw", "group": "g"}
    text = "\n\n".join(json.dumps(line) for line in lines)  # empty lines are no samples
    result = r2m("score", "--run", "tldr", "--batch", "2", input=text)
    assert result.exit_code == 0
    assert [line["id"] for line in lines_of(result)] == ["1", "mine", "5", "7", "9"]
    assert lines_of(result)[0] == {"id": "1", "reward": 0.5, "vanilla_reward": 0.0, "head": 12}
    assert [seen.request["head"] for seen in script.seen] == ["live", "12", "12"]
    assert script.seen[0].request["samples"][1]["group"] == "g"


def test_samples_without_a_reward(r2m, script):
    error = {"code": "text_too_long", "message": "99 tokens", "retryable": False}
    scores = [{"id": "1", "error": error}, {"id": "2", "vanilla_reward": 1.5}]
    script.steps.append({"fingerprint": "f", "scores": scores})
    result = r2m("score", input='{"prompt":"p","response":"r"}\n' * 2)
    assert result.exit_code == 1
    assert lines_of(result) == [
        {"id": "1", "error": {"code": "text_too_long", "message": "99 tokens"}},
        {"id": "2", "vanilla_reward": 1.5},
    ]
    assert result.stderr == "Error: 1 of 2 samples have no reward\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "line 1 is not JSON"),
        ("[1]", "line 1 is not a JSON object"),
        ('{"prompt": "p"}', "line 1 has no string 'response'"),
        ('{"prompt": 1, "response": "r"}', "line 1 has no string 'prompt'"),
        ('{"prompt": "p", "response": "r", "colour": 1}', "line 1: 'colour' is not one of"),
        ('{"id": [], "prompt": "p", "response": "r"}', "line 1: 'id' is a string"),
        ('{"id": true, "prompt": "p", "response": "r"}', "line 1: 'id' is a string"),
        ('{"prompt": "p", "response": "r", "group": 3}', "line 1 has no string 'group'"),
        ('{"messages": "hi"}', "line 1 has no list 'messages'"),
        ('{"messages": ["hi"]}', "line 1: 'messages' is a list of turns, which are objects"),
        ('{"messages": [], "tools": "f"}', "line 1 has no list 'tools'"),
        ('{"token_ids": 7}', "line 1 has no list 'token_ids'"),
        ('{"token_ids": [1, true]}', "line 1: 'token_ids' are whole numbers"),
        (
            '{"prompt": "p", "response": "r", "special_tokens": 0}',
            "line 1 has no boolean 'special_tokens'",
        ),
        ('{"prompt": "p", "response": "r", "truncation": 1}', "line 1 has no string 'truncation'"),
    ],
)
def test_lines_that_are_no_samples(r2m, script, line, words):
    result = r2m("score", input=line)
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not script.seen


def test_no_lines(r2m, script):
    result = r2m("score", input="")
    assert (result.exit_code, result.stdout) == (0, "")
    assert not script.seen


def test_every_form_of_text(r2m, script):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "you"}]
    lines = [
        {"id": 17, "messages": turns, "tools": [{"name": "f"}], "finish_reason": "stop"},
        {"id": "ids", "token_ids": [1, 2], "group": "g"},
        {"prompt": "p", "response": "r", "special_tokens": False, "truncation": "left"},
    ]
    result = r2m("score", "--raw", input="\n".join(map(json.dumps, lines)))
    assert result.exit_code == 0, result.stderr
    assert script.seen[0].request["samples"] == [
        {"id": "17", "format": "chat", "finish_reason": "stop", "messages": turns,
         "tools": '[{"name": "f"}]'},
        {"id": "ids", "format": "chat", "token_ids": [1, 2], "group": "g"},
        {"id": "3", "format": "raw", "prompt": "p", "response": "r", "special_tokens": False,
         "truncation": "left"},
    ]  # fmt: skip


def test_a_line_out_says_what_was_cut(r2m, script):
    score = {"id": "1", "vanilla_reward": 1.5, "tokens": 8, "truncated": 3, "finish_reason": "x"}
    script.steps.append({"fingerprint": "f", "scores": [score]})
    result = r2m("score", input='{"prompt":"p","response":"r"}')
    assert lines_of(result) == [score]


def test_states_go_along(r2m, script, tmp_path):
    file = tmp_path / "states.safetensors"
    save_file({"1": np.ones((2, 3), np.float32)}, file)
    line = '{"prompt":"p","response":"r"}\n'
    assert r2m("score", "--run", "tldr", "--states", str(file), input=line).exit_code == 0
    assert script.seen[0].tensors == {"1": np.ones(6, np.float32).tobytes()}
    result = r2m("score", "--run", "tldr", "--states", str(file), input=2 * line)
    assert result.stderr == "Error: line 2: the states hold no tensor 2\n"
    missing = r2m("score", "--run", "tldr", "--states", str(tmp_path / "no"), input=line)
    assert "cannot read" in missing.stderr


def test_progress_is_for_people_who_look_at_it_alone(capsys, monkeypatch):
    for errors, output, shown in ((True, False, True), (True, True, False), (False, False, False)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda seen=errors: seen)
        monkeypatch.setattr(sys.stdout, "isatty", lambda seen=output: seen)
        with Progress() as progress:
            progress.show("1 scored")
            progress.show("2 scored")
        assert capsys.readouterr() == ("", "\r1 scored\r2 scored\n" if shown else "")


def test_pairs_of_conversations():
    before = [{"role": "user", "content": "hi"}]
    good, bad = ([{"role": "assistant", "content": text}] for text in ("you", "no"))
    tools = [{"name": "f"}]
    lines = [
        {"id": 3, "prompt": before, "chosen": good, "rejected": bad, "tools": tools},
        {"chosen": [*before, *good], "rejected": [*before, *bad]},
        {"prompt": "hi", "chosen": "you", "rejected": "no", "format": "raw"},
    ]
    first, second, third = pairs(map(json.dumps, lines), Counter())
    assert [first.id, second.id, third.rejected.id] == ["3", "2", "3/rejected"]
    assert (first.chosen.messages, first.rejected.tools) == ([*before, *good], tools)
    assert (second.rejected.messages, second.rejected.tools) == ([*before, *bad], None)
    assert (third.chosen.prompt, third.rejected.response) == ("hi", "no")
    assert {third.chosen.format, third.rejected.format} == {"raw"}
    for wrong in ({"chosen": "you"}, {"chosen": [1]}, {"prompt": "hi", "chosen": 1}):
        with pytest.raises(ValueError, match="line 1"):
            list(pairs([json.dumps({"rejected": bad, **wrong})], Counter()))
