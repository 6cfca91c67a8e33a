"""OpenRLHF's reward function: through a restart, and loudly where there is no reward."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import pathlib
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from support.serving import running

from r2m_client.integrations import openrlhf

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "trainers" / "openrlhf_reward.py"
ANSWER = {"rewards": [0.5], "scores": [0.5], "extra_logs": {"tokens": [3.0]}}
TOO_LONG = {"error": {"code": "text_too_long", "message": "query[0] has no reward: too long"}}
STARTING = {"error": {"code": "not_ready", "message": "the model is loading", "retryable": True}}


class Server:
    """On a port of its own: nothing until `start`, then the given answers; the last one stays."""

    def __init__(self, answers):
        self.asked = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.asked.append((self.path, json.loads(body)))
                status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._http.daemon_threads = True
        self._http.server_bind()  # bound and not listening: connections are refused
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = None

    def start(self):
        self._http.server_activate()
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self):
        if self._thread is not None:
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()


@pytest.fixture(autouse=True)
def clients(monkeypatch):
    """Those that the function opens end with the test."""
    opened, opens = [], openrlhf._rewards_at.__wrapped__

    @functools.cache
    def kept(address):
        opened.append(opens(address))
        return opened[-1]

    monkeypatch.setattr(openrlhf, "_rewards_at", kept)
    for name in ("R2M_URL", "R2M_RUN", "R2M_TIMEOUT", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield
    for client in opened:
        client.close()


@pytest.fixture
def serves(monkeypatch):
    """Starts a `Server` after so many pauses of the client, which cost no time."""
    made = []

    def make(*answers, after=0):
        server = Server(list(answers))
        made.append(server)
        server.pauses = 0

        def pause(seconds):
            server.pauses += 1
            if server.pauses == after:
                server.start()

        if not after:
            server.start()
        monkeypatch.setattr(openrlhf.RewardClient, "_sleep", staticmethod(pause))
        monkeypatch.setenv("R2M_URL", server.url)
        return server

    yield make
    for server in made:
        server.stop()


async def openrlhf_s_sample(reward_func):
    """A rollout as OpenRLHF scores it: each Exception is a lost reward, and it goes on."""
    output = {"reward": None}
    try:
        info = await asyncio.to_thread(reward_func, ["Q: 2?A: 2."], ["Q: 2?"], ["2"])
        output.update(reward=info["rewards"], extra_logs=info["extra_logs"])
    except Exception as error:
        print(error)
    return output


def test_a_restart_that_is_longer_than_openrlhf_s_own_tries_costs_no_reward(serves):
    server = serves((503, STARTING), (503, STARTING), (200, ANSWER), after=12)
    sample = asyncio.run(openrlhf_s_sample(openrlhf.reward_func))
    assert sample["reward"] == [0.5]
    assert server.pauses == 14
    path, body = server.asked[-1]
    assert path == "/get_reward"
    assert body == {"query": ["Q: 2?A: 2."], "prompts": ["Q: 2?"], "labels": ["2"]}


def test_what_has_no_reward_stops_the_step_and_says_why(serves):
    serves((422, TOO_LONG))
    with pytest.raises(openrlhf.NoRewardError, match=r"query\[0\] has no reward: too long") as one:
        asyncio.run(openrlhf_s_sample(openrlhf.reward_func))
    # Ray sends it to the trainer.
    assert str(pickle.loads(pickle.dumps(one.value))) == str(one.value)


def test_it_asks_until_its_time_is_over_and_says_so(serves, monkeypatch):
    serves((503, STARTING))
    monkeypatch.setenv("R2M_TIMEOUT", "0.5")
    with pytest.raises(openrlhf.NoRewardError, match=r"the model is loading.*tries in 0\.\d s"):
        asyncio.run(openrlhf_s_sample(openrlhf.reward_func))


def test_a_run_s_rewards_are_asked_for_where_they_are(serves, monkeypatch):
    server = serves((200, ANSWER))
    monkeypatch.setenv("R2M_RUN", "graded")
    assert openrlhf.reward_func(["q"], ["p"], [None]) == ANSWER
    assert server.asked[-1][0] == "/runs/graded/get_reward"


@pytest.mark.parametrize("url", [None, "grpc://127.0.0.1:1"])
def test_an_address_that_does_not_do_is_as_loud(monkeypatch, url):
    if url:
        monkeypatch.setenv("R2M_URL", url)
    with pytest.raises(openrlhf.NoRewardError, match="R2M_URL"):
        asyncio.run(openrlhf_s_sample(openrlhf.reward_func))


def test_the_example_s_function_gives_what_the_url_gives(reward_model, tmp_path, monkeypatch):
    # As OpenRLHF loads it.
    spec = importlib.util.spec_from_file_location("reward_func", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with running(reward_model, tmp_path) as server:
        monkeypatch.setenv("R2M_URL", server.urls["http"])
        found = module.reward_func(["Q: 2?A: 2."], ["Q: 2?"], ["2"])
        body = {"query": ["Q: 2?A: 2."], "prompts": ["Q: 2?"], "labels": ["2"]}
        assert found == httpx.post(f"{server.urls['http']}/get_reward", json=body).json()
