"""examples/loop.sh, a trainer without Python: trains, resumes, takes failures as documented."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest
from faulty_proxy import LOST, FaultyProxy, Refusal, refusal
from support.serving import running

from r2m_client import Client

LOOP = pathlib.Path(__file__).parents[2] / "examples" / "loop.sh"
ABSENT = [tool for tool in ("bash", "curl", "jq") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")


@pytest.fixture(scope="module")
def server(reward_model, tmp_path_factory):
    with running(reward_model, tmp_path_factory.mktemp("state")) as one:
        yield one


@pytest.fixture
def proxy(server):
    with FaultyProxy(server.urls["http"]).running() as one:
        yield one


@pytest.fixture
def client(server):
    with Client(server.urls["http"], retries=0) as one:
        yield one


@pytest.fixture
def loop(tmp_path):
    """Runs the script with a `sleep` that only notes how long it was asked to."""
    slept = tmp_path / "slept"
    slept.touch()
    sleep = tmp_path / "bin" / "sleep"
    sleep.parent.mkdir()
    sleep.write_text(f'#!/bin/sh\necho "$1" >>{slept}\n')
    sleep.chmod(0o755)

    path = f"{sleep.parent}{os.pathsep}{os.environ['PATH']}"

    def run(*arguments):
        done = subprocess.run(
            ["bash", str(LOOP), *arguments],
            env={**os.environ, "PATH": path, "no_proxy": "127.0.0.1"},
            capture_output=True, text=True, timeout=25, check=False,
        )  # fmt: skip
        done.slept = slept.read_text().split()
        return done

    return run


def steps(output):
    """(step, verdict, head, mean reward) of each line that tells of a step."""
    found = re.findall(r"^step (\d+)  (\w+)  head (\d+)  mean reward (\S+)$", output, re.M)
    return [(int(step), verdict, int(head), float(mean)) for step, verdict, head, mean in found]


def test_it_trains_and_goes_on_where_it_stopped(server, client, loop):
    at = ("--url", server.urls["http"], "--run", "trained")
    first = loop(*at, "--steps", "2")
    assert (first.returncode, first.stderr) == (0, "")
    assert [one[:3] for one in steps(first.stdout)] == [(1, "accepted", 1), (2, "accepted", 2)]
    run = client.run("trained")
    assert (run.step, run.head, run.usage.samples, run.usage.failed) == (2, 2, 16, 0)

    second = loop(*at, "--steps", "1")
    assert [one[:3] for one in steps(second.stdout)] == [(3, "accepted", 3)]
    assert client.run("trained").next_step == 4
    heads = [line for line in second.stdout.splitlines() if line.startswith("head ")]
    assert len(heads) == 4
    for line, head in zip(heads, client.heads("trained"), strict=True):
        parent = "-" if head.parent is None else head.parent
        assert line == (
            f"head {head.head}  parent {parent}  step {head.step}  {head.verdict}: {head.reason}"
        )


def test_failures_that_pass_change_nothing(server, client, proxy, loop):
    calm = loop("--url", server.urls["http"], "--run", "calm", "--steps", "2")
    busy = refusal("overloaded", 429, retryable=True, **{"Retry-After": "7"})
    full = refusal("storage_failed", 503, retryable=True)
    proxy.fail("/v1/runs", busy, LOST)
    proxy.fail("/score", Refusal(502), full)
    proxy.fail("/align", LOST, refusal("align_conflict", 409, retryable=True), LOST)
    proxy.fail("/heads", Refusal(503))
    rough = loop("--url", proxy.url, "--run", "rough", "--steps", "2", "--pause", "0.25")
    assert rough.returncode == 0, rough.stderr
    assert proxy.unused == []
    assert rough.stdout == calm.stdout
    assert rough.slept == ["7", "0.5", "0.25", "0.5", "0.25", "0.5", "1", "0.25"]
    assert rough.stderr.count("once more") == 8
    # The repeats had the very same body, and each step was taken once.
    for path, attempts in (("/v1/runs", 3), ("/score", 4), ("/align", 5)):
        bodies = [body for asked, body in proxy.requests if asked.endswith(path)]
        assert len(bodies) == attempts
        assert len(set(bodies)) == (1 if path == "/v1/runs" else 2)
    assert client.run("rough").step == 2
    assert len(client.heads("rough")) == 3


def broken(*ids):
    """Takes the rewards of these samples from a score's answer."""

    def change(answer):
        for score in answer["scores"]:
            if score["id"] in ids:
                del score["reward"], score["vanilla_reward"]
                score["error"] = {"code": "reward_not_finite", "message": "it overflowed"}

    return change


def test_an_error_is_no_reward(server, proxy, loop):
    whole = loop("--url", server.urls["http"], "--run", "whole", "--steps", "1")
    seen = []
    proxy.fail("/score", lambda answer: (broken("q1-2", "q1-3")(answer), seen.append(answer)))
    done = loop("--url", proxy.url, "--run", "hurt", "--steps", "1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"no reward for q1-{n}: it overflowed" for n in (2, 3)]
    rewards = [score["reward"] for score in seen[0]["scores"] if "reward" in score]
    assert len(rewards) == 6
    ((*_, mean),) = steps(done.stdout)
    assert mean == pytest.approx(sum(rewards) / 6, abs=1e-4)
    assert mean != steps(whole.stdout)[0][-1]
    (aligned,) = [json.loads(body) for path, body in proxy.requests if path.endswith("/align")]
    assert [group["id"] for group in aligned["groups"]] == ["q2"]
    assert [sample["id"] for sample in aligned["groups"][0]["samples"]] == [
        f"q2-{n}" for n in (1, 2, 3, 4)
    ]


def test_without_any_reward_it_stops(client, proxy, loop):
    proxy.fail("/score", broken(*(f"q{g}-{n}" for g in (1, 2) for n in (1, 2, 3, 4))))
    done = loop("--url", proxy.url, "--run", "none")
    assert done.returncode == 1
    assert "no sample of step 1 has a reward" in done.stderr
    assert client.run("none").step == 0


def test_what_does_not_pass_is_not_repeated(client, proxy, loop):
    client.create_run("taken", policy_hidden_size=5)
    done = loop("--url", proxy.url, "--run", "taken")
    assert done.returncode == 1
    assert "run_exists" in done.stderr
    assert (len(proxy.requests), done.slept) == (1, [])

    proxy.fail("/score", refusal("head_damaged", 503, retryable=False))
    done = loop("--url", proxy.url, "--run", "damaged")
    assert done.returncode == 1
    assert "head_damaged" in done.stderr
    assert done.slept == []


def test_it_gives_up_in_the_end(proxy, loop):
    proxy.fail("/v1/runs", *[refusal("not_ready", 503, retryable=True)] * 9)
    done = loop("--url", proxy.url)
    assert done.returncode == 1
    assert "503 after 6 attempts" in done.stderr
    assert done.slept == ["0.5", "1", "2", "4", "8"]


def test_help_and_wrong_usage(loop):
    usage = loop("--help")
    assert (usage.returncode, usage.stderr) == (0, "")
    for option in ("--url", "--run", "--steps", "--pause"):
        assert option in usage.stdout
    wrong = loop("--stesp", "3")
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", usage.stdout)
    assert os.access(LOOP, os.X_OK)
