"""examples/trainers/nemo_gym_r2m.yaml, read as NeMo Gym reads it, against a server of a run."""

import pathlib

import httpx
import pytest
import yaml
from support.serving import running

from r2m_client import Client, Sample

CONFIG = pathlib.Path(__file__).parents[2] / "examples" / "trainers" / "nemo_gym_r2m.yaml"
ROLLOUT = {
    "responses_create_params": {"input": [{"role": "user", "content": "The capital?"}]},
    "response": {
        "output": [
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Paris."}],
            }
        ]
    },
    "_ng_task_index": 7,
    "_ng_rollout_index": 2,
}
TYPES = ("responses_api_models", "resources_servers", "responses_api_agents")


def first_of(entry):
    """The server that NeMo Gym calls, and starts where it has an entrypoint: the first, twice."""
    (inner, *_) = entry.values()
    (server, *_) = inner.values()
    return server


@pytest.fixture(scope="module")
def config():
    return yaml.safe_load(CONFIG.read_text())


def test_its_servers_are_what_nemo_gym_s_check_takes(config):
    servers = {
        (kind, name): server
        for name, entry in config.items()
        for kind in TYPES
        for server in entry.get(kind, {}).values()
    }
    assert all("entrypoint" in one for one in servers.values())
    assert all("domain" in one for (kind, _), one in servers.items() if kind == TYPES[1])
    named = {(one["type"], one["name"]) for one in servers[TYPES[2], "r2m_simple_agent"].values()
             if isinstance(one, dict)}  # fmt: skip
    assert named == {(TYPES[1], "r2m"), (TYPES[0], "policy_model")}
    assert (TYPES[1], "r2m") in servers


def test_its_calls_are_answered_by_the_run_and_no_process_is_started(
    config, reward_model, tmp_path
):
    address = first_of(config["r2m"])
    assert "entrypoint" not in address
    assert "entrypoint" in first_of(config["r2m_simple_agent"])
    with (
        running(reward_model, tmp_path, compat_run="mine") as server,
        Client(server.urls["http"], retries=0) as client,
    ):
        client.create_run("mine", feedback="none", method={"width": 16})
        # The port of a test is whichever is free; all else of the URL is the example's.
        port = server.urls["http"].rpartition(":")[2]
        assert isinstance(address.pop("port"), int)
        base = "http://{host}:{port}".format(**address, port=port)
        reward = client.score([Sample("a", "The capital?", "Paris.")], run="mine").rewards[0]
        for rollout in ("", "/ng-rollout/7-2"):  # with observability_enabled
            assert httpx.post(f"{base}{rollout}/seed_session", json=ROLLOUT).json() == {}
            answer = httpx.post(f"{base}{rollout}/verify", json=ROLLOUT)
            assert answer.json() == {**ROLLOUT, "reward": pytest.approx(reward, abs=1e-6)}
