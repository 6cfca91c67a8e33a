"""`r2m evaluate` and `r2m heads diff`: against a real server."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file
from support.rollouts import PROMPTS, RESPONSES, WIDTH_P, groups, states

from r2m_client import Client
from r2m_client.cli import main


@pytest.fixture
def r2m(server, monkeypatch):
    monkeypatch.setenv("R2M_URL", server.urls["http"])
    return lambda *args, **kwargs: CliRunner().invoke(main, args, **kwargs)


@pytest.fixture
def run(server, run_name):
    with Client(server.urls["grpc"], wire_dtype="float32", retries=0) as client:
        client.create_run(
            run_name, policy_hidden_size=WIDTH_P, method={"width": 16, "learning_rate": 1e-3}
        )
        for step in (1, 2):
            assert client.align(run_name, step=step, groups=groups(step)).accepted
        client.rollback(run_name, to=1)
        assert client.align(run_name, step=2, groups=groups(7)).accepted
    return run_name


def lines(count=6):
    return "".join(
        json.dumps({"prompt": PROMPTS[n % 3], "chosen": RESPONSES[n % 5], "rejected": f"No {n}."})
        + "\n"
        for n in range(count)
    )


@pytest.fixture
def held(tmp_path):
    found = {
        f"{n + 1}/{side}": states(100 + 2 * n + s)
        for n in range(6)
        for s, side in enumerate(("chosen", "rejected"))
    }
    save_file(found, tmp_path / "states.safetensors")
    return str(tmp_path / "states.safetensors")


def test_heads_are_judged_on_the_same_pairs(r2m, run, held):
    result = r2m(
        "evaluate", run, "--head", "0", "--head", "live", "--states", held, "--json", input=lines()
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [one["head"] for one in found["heads"]] == [0, 3]
    assert found["pairs"] == 6
    first, vanilla = found["heads"][0], found["vanilla"]
    assert first["accuracy"] == vanilla["accuracy"]  # version 0 ranks as the frozen model
    shown = r2m("evaluate", run, "--head", "0", "--states", held, input=lines()).stdout
    assert f"{first['accuracy']:.3f}" in shown
    assert "vanilla" in shown
    assert "6 pairs; better, worse and p: against head 0" in shown


def test_what_cannot_be_judged_is_told(r2m, run, held):
    without = r2m("evaluate", run, input=lines(2))
    assert without.exit_code == 1
    assert "feedback_missing" in without.stderr
    assert "2 of 2 pairs left out" in without.stderr
    for text, words in (
        ("", "no pairs"),
        ("{}", "line 1 has no string 'prompt'"),
        (lines(7), "the states hold no tensor 7/chosen"),
    ):
        result = r2m("evaluate", run, "--states", held, input=text)
        assert result.exit_code == 1
        assert words in result.stderr
        assert len([one for one in result.stderr.splitlines() if one.startswith("Error")]) == 1
    assert "cannot read" in r2m("evaluate", run, "--states", "/nowhere", input=lines()).stderr


def test_conversations_are_judged_as_their_texts_are(r2m, run, held):
    def turns(line):
        return {
            "prompt": [{"role": "user", "content": line["prompt"]}],
            **{
                side: [{"role": "assistant", "content": line[side]}]
                for side in ("chosen", "rejected")
            },
        }

    talks = "".join(json.dumps(turns(json.loads(line))) + "\n" for line in lines().splitlines())
    asked = ("evaluate", run, "--states", held, "--json")
    told = r2m(*asked, input=talks)
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout) == json.loads(r2m(*asked, input=lines()).stdout)


def test_texts_in_every_form_are_scored_with_their_states(r2m, run, tmp_path):
    rows = [
        {"prompt": PROMPTS[0], "response": RESPONSES[0]},
        {"messages": [{"role": "user", "content": PROMPTS[0]},
                      {"role": "assistant", "content": RESPONSES[0]}]},
        {"token_ids": [7] * 900, "finish_reason": "length"},
    ]  # fmt: skip
    save_file({str(n + 1): states(5) for n in range(3)}, tmp_path / "s.safetensors")
    result = r2m(
        "score", "--run", run, "--states", str(tmp_path / "s.safetensors"),
        input="\n".join(map(json.dumps, rows)),
    )  # fmt: skip
    assert result.exit_code == 1
    pair, talk, long = map(json.loads, result.stdout.splitlines())
    assert pair["reward"] == pytest.approx(talk["reward"], abs=1e-6)
    assert (pair["head"], pair["tokens"]) == (3, talk["tokens"])
    assert pair["states"] == len(states(5))
    assert long["error"]["code"] == "text_too_long"


def test_heads_diff(r2m, run):
    result = r2m("heads", "diff", run, "0", "2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("2 comes from 0, 2 updates later\n")
    assert "from 0" in next(one for one in result.stdout.splitlines() if one.startswith("w_o"))
    found = json.loads(r2m("heads", "diff", run, "2", "live", "--json").stdout)
    assert found["lineage"] == "both come from 1: 2 1 update later, 3 1 update later"
    moved = {one["tensor"]: one for one in found["weights"]}
    assert set(moved) == {"w_q", "w_k", "w_v", "w_o", "head.weight"}
    assert 0 < moved["w_q"]["moved"] < 0.1
    assert moved["w_q"]["cosine"] > 0.99
    assert found["facts"]["branch"] == ["main", "b1"]
    same = json.loads(r2m("heads", "diff", run, "1", "1", "--json").stdout)
    assert (same["lineage"], same["facts"]) == ("the same version", {})
    assert all(one["moved"] == 0 for one in same["weights"])


def test_the_numbers_of_a_diff_are_those_of_numpy(server, r2m, run):
    from safetensors.numpy import load

    with Client(server.urls["http"]) as client:
        a, b = (load(client.head_weights(run, n)) for n in (1, 2))
    found = json.loads(r2m("heads", "diff", run, "1", "2", "--json").stdout)
    for one in found["weights"]:
        x, y = (w[one["tensor"]].ravel().astype(np.float64) for w in (a, b))
        assert one["moved"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))
