"""8-bit hidden states over every way in: the rewards of the numbers that they stand for."""

import base64
import struct

import httpx
import numpy as np
import pytest
from support.rollouts import WIDTH_P, groups, samples

from r2m import int8
from r2m.tensors import TensorValue
from r2m_client import ChannelScales, Client, Group, Sample

METHOD = {"width": 16, "learning_rate": 3e-4}
SCALES = ChannelScales.of(*(one.hidden_states for one in samples(77, count=8)))


def quantized(batch):
    return [
        Sample(one.id, one.prompt, one.response, SCALES.quantize(one.hidden_states))
        for one in batch
    ]


def stood_for(batch):
    """The numbers that the 8 bits stand for, as float32."""
    found = []
    for one in batch:
        value = SCALES.quantize(one.hidden_states)
        states = int8.decode(value.data, value.shape)
        found.append(Sample(one.id, one.prompt, one.response, states))
    return found


@pytest.fixture
def run(client, run_name):
    """Three aligns, so that rewards depend on the states."""
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    for step in (1, 2, 3):
        assert client.align(run_name, step=step, groups=groups(step)).accepted
    return run_name


def test_rewards_are_those_of_the_numbers_sent(server, client, run):
    batch = [s for seed in range(4) for s in samples(seed, group=f"s{seed}")]
    expected = client.score(stood_for(batch), run=run).rewards
    sent = client.bytes_sent
    assert client.score(quantized(batch), run=run).rewards == pytest.approx(expected, abs=1e-5)
    assert client.bytes_sent > sent
    full = np.array(client.score(batch, run=run).rewards)
    assert 0 < np.abs(np.array(expected) - full).max() < 0.05 * full.std()
    with Client(server.urls[client.kind], wire_dtype="int8") as narrow:
        by_sample = np.array(narrow.score(batch, run=run).rewards)
    assert 0 < np.abs(by_sample - full).max() < 0.05 * full.std()


def test_over_a_stream_and_in_json(server, client, run):
    batch = samples(5)
    expected = client.score(stood_for(batch), run=run).rewards
    if client.kind == "grpc":
        with client.score_stream(run=run) as stream:
            for one in quantized(batch):
                stream.send(one)
            stream.finish()
            found = {score.id: score.reward for score in stream}
        assert [found[one.id] for one in batch] == pytest.approx(expected, abs=1e-5)
        return
    asked = [
        {
            "id": one.id,
            "prompt": one.prompt,
            "response": one.response,
            "feedback": {
                "dtype": "int8",
                "shape": list(one.hidden_states.shape),
                "data": base64.b64encode(one.hidden_states.data).decode(),
            },
        }
        for one in quantized(batch)
    ]
    url = f"{server.urls['http']}/v1/runs/{run}/score"
    scores = httpx.post(url, json={"samples": asked}).json()["scores"]
    assert [one["reward"] for one in scores] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("progress", [None, lambda _: None])
def test_an_align_learns_the_same_from_them(client, run_name, progress):
    """With progress told, gRPC sends the states in chunks."""
    losses = []
    for kind, form in (("a", stood_for), ("b", quantized)):
        name = f"{run_name}-{kind}"
        client.create_run(name, policy_hidden_size=WIDTH_P, method=METHOD)
        for step in (1, 2):
            batch = [Group(one.id, form(one.samples)) for one in groups(step)]
            answer = client.align(name, step=step, groups=batch, progress=progress)
        losses.append((answer.loss.total, answer.gradient_norm))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_scales_that_no_states_have_cost_one_sample(client, run):
    good, bad, short = quantized(samples(6, count=3))
    data = bytearray(bad.hidden_states.data)
    data[:4] = struct.pack("<f", -0.5)
    wrong = Sample("bad", "p", "r", TensorValue("int8", bad.hidden_states.shape, data))
    scores = client.score([good, wrong, short], run=run).scores
    assert [one.error and one.error.code for one in scores] == [None, "feedback_not_finite", None]
    assert "channel scales are negative" in scores[1].error.message
    assert scores[1].reward is None
