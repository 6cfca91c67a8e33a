"""`r2m serve` as a process of its own: killed, restarted, stopped, and refusing to start."""

import contextlib
import signal
import socket
import subprocess
import time

import httpx
import pytest
from safetensors.torch import load
from support.processes import R2M, Process, serving
from support.rollouts import WIDTH_P, groups, samples

from r2m_client import Client, NotFound, ServerError

METHOD = {"width": 16, "learning_rate": 3e-4}


def test_a_killed_server_goes_on_as_if_nothing_had_happened(reward_model, tmp_path):
    state = tmp_path / "state"
    with serving(reward_model, state, "--deterministic") as server, Client(server.grpc) as client:
        client.create_run("killed", policy_hidden_size=WIDTH_P, method=METHOD)
        client.create_run("whole", policy_hidden_size=WIDTH_P, method=METHOD)
        whole = [client.align("whole", step=n, groups=groups(n)) for n in (1, 2, 3)]
        acknowledged = [client.align("killed", step=n, groups=groups(n)) for n in (1, 2)]
        rewards = client.score(samples(1), run="killed").rewards
        first = client.score(samples(1), run="killed", head=0).rewards
        server.end(signal.SIGKILL)
    with serving(reward_model, state, "--deterministic") as server, Client(server.http) as client:
        assert client.run("killed").step == 2
        # A retry, now over the other transport, gets the stored answer.
        assert client.align("killed", step=2, groups=groups(2)) == acknowledged[1]
        assert client.score(samples(1), run="killed").rewards == rewards
        assert client.score(samples(1), run="killed", head=0).rewards == first
        third = client.align("killed", step=3, groups=groups(3))
        assert third.loss == whole[2].loss
        # Bit for bit the head of the run that was never interrupted.
        ours, theirs = (load(client.head_weights(run, 3)) for run in ("killed", "whole"))
        assert all(ours[name].equal(theirs[name]) for name in theirs)
        code, output = server.end(signal.SIGTERM)
    assert code == 0
    assert "draining" in output
    assert "Traceback" not in output
    if not list((tmp_path / "state").glob("**/*.part")):
        return
    raise AssertionError("temporary files were left behind")


def test_a_run_of_another_backbone_can_only_be_read(reward_model, tmp_path):
    state = tmp_path / "state"
    with serving(reward_model, state) as server, Client(server.http) as client:
        client.create_run("r", policy_hidden_size=WIDTH_P, method=METHOD)
        server.end()
    other = serving(reward_model, state, "--max-length", "64")
    with other as server, Client(server.http) as http, Client(server.grpc) as grpc:
        for client in (http, grpc):
            assert client.run("r").head == 0
            assert load(client.head_weights("r"))
            for call in (
                lambda client=client: client.score(samples(1), run="r"),
                lambda client=client: client.align("r", step=1, groups=[]),
                lambda client=client: client.set_alias("r", "a", 0),
                lambda client=client: client.create_run(
                    "r", policy_hidden_size=WIDTH_P, method=METHOD
                ),
            ):
                with pytest.raises(ServerError) as caught:
                    call()
                assert caught.value.code == "backbone_mismatch"
            with pytest.raises(NotFound):
                client.run("s")


def refused(*flags):
    done = subprocess.run(
        [*R2M, "serve", *flags], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_server_that_cannot_start_says_why_in_one_line(reward_model, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        state = ("--model", str(reward_model), "--state", str(tmp_path / "s"))
        assert address in refused(*state, "--http", address)
        assert "--grpc" in refused(*state, "--http", "127.0.0.1:0", "--grpc", address)
    ports = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    assert "no folder" in refused("--model", str(tmp_path / "nowhere"), *ports)
    (tmp_path / "file").write_text("")
    line = refused("--model", str(reward_model), "--state", str(tmp_path / "file" / "s"), *ports)
    assert str(tmp_path / "file") in line
    assert "--http" in refused("--model", "x", "--http", "nonsense")
    assert "--token-budget" in refused("--model", "x", "--token-budget", "many")


def test_probes_are_answered_while_the_model_loads_and_a_signal_is_heeded(reward_model, tmp_path):
    server = Process(reward_model, tmp_path / "state")
    try:
        deadline = time.monotonic() + 30
        seen = None
        while seen is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                seen = httpx.get(f"{server.http}/livez").status_code
        ready = httpx.get(f"{server.http}/readyz")
        code, output = server.end(signal.SIGTERM)
    finally:
        server.end(signal.SIGKILL)
    assert seen == 200
    if ready.status_code != 200:  # it may just have been quick
        assert ready.json()["error"]["code"] == "not_ready"
        assert ready.headers["Retry-After"]
        assert "ready:" not in output
    assert code == 0
    assert "Traceback" not in output


TERM_AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "r2m_service.bootstrap":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
"""


def test_a_signal_that_comes_before_the_server_is_built_ends_it(reward_model, tmp_path):
    # Its own handler, not the default: process 1 of a container has no default.
    one = Process(reward_model, tmp_path, first=TERM_AT_IMPORT)
    output, _ = one.process.communicate(timeout=60)
    assert one.process.returncode == 143
    # What it said before; and no traceback.
    assert all("access: no keys" in line for line in output.splitlines()), output
