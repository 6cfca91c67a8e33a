"""The same numbers on a GPU as on the CPU, and what only a GPU has: its memory, its copies."""

import asyncio
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support.models import save_reward_model
from support.processes import serving
from support.rollouts import WIDTH_P, groups, samples, states
from support.serving import running

from r2m.errors import Code, Problem
from r2m.tensors import tensor_value
from r2m_client import Client, Sample
from r2m_service.application.scoring_items import HeadKey, HeadSource, Item
from r2m_service.engine.states import Uploads, on_device, pinned
from r2m_service.engine.torch_engine import TorchEngine
from r2m_service.modeling.head import Head
from r2m_service.modeling.loading import load_backbone
from r2m_service.transports.buffers import BufferPool

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

METHOD = {"width": 16, "learning_rate": 3e-4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_reward_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def backbones(model):
    return {
        device: load_backbone(str(model), device=device, dtype="float32")
        for device in ("cpu", "cuda")
    }


def history(url, *, feedback="streamed", wire_dtype="float32"):
    """Rewards of four batches and the head, after three aligns."""
    with Client(url, wire_dtype=wire_dtype) as client:
        name = f"{feedback}-{wire_dtype}"
        client.create_run(name, policy_hidden_size=WIDTH_P, method=METHOD)
        for step in (1, 2, 3):
            rollouts = [one for group in groups(step) for one in group.samples]
            scored = client.score(rollouts, run=name, feedback=feedback)
            more = {"context": scored.context} if feedback == "split" else {}
            aligned = client.align(name, step=step, groups=groups(step), feedback=feedback, **more)
            assert aligned.accepted
        batch = [one for seed in range(4) for one in samples(seed, group=f"s{seed}")]
        rewards = client.score(batch, run=name, feedback=feedback).raise_for_errors().rewards
        return np.array(rewards), load(client.head_weights(name))


@pytest.mark.parametrize(
    ("feedback", "wire_dtype"),
    [("streamed", "float32"), ("streamed", "bfloat16"), ("streamed", "int8"), ("split", "float32")],
)
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_rewards_and_heads_are_those_of_the_cpu(
    model, backbones, tmp_path, transport, feedback, wire_dtype
):
    found = {}
    for device in ("cpu", "cuda"):
        with running(model, tmp_path / device, backbone=backbones[device]) as server:
            found[device] = history(
                server.urls[transport], feedback=feedback, wire_dtype=wire_dtype
            )
    (ours, head), (expected, expected_head) = found["cuda"], found["cpu"]
    assert np.abs(ours - expected).max() < 1e-3 * expected.std()
    for name, tensor in expected_head.items():
        # Adam's first steps are as large for a gradient of rounding noise as for any other.
        assert (head[name] - tensor).abs().mean() < 1e-2 * METHOD["learning_rate"], name


def test_a_sample_with_states_that_are_no_numbers_has_an_error_of_its_own(
    model, backbones, tmp_path
):
    batch = samples(1)
    bad = states(7, tokens=12)
    bad[4, 5] = np.nan
    batch[2] = Sample("bad", "p", "r", bad)
    with (
        running(model, tmp_path / "state", backbone=backbones["cuda"]) as server,
        Client(server.urls["grpc"], wire_dtype="float32") as client,
    ):
        client.create_run("r", policy_hidden_size=WIDTH_P, method=METHOD)
        assert client.align("r", step=1, groups=groups(1)).accepted
        scores = client.score(batch, run="r").scores
    assert [one.error is None for one in scores] == [True, True, False, True]
    assert scores[2].error.code == "feedback_not_finite"
    assert "first at token 4, place 5" in scores[2].error.message


def items(count, *, tokens=40):
    draw = np.random.default_rng(3)
    return [
        Item(
            tuple(int(n) for n in draw.integers(3, 300, draw.integers(3, tokens))),
            tensor_value(states(n, tokens=5 + 3 * n), dtype="bfloat16"),
        )
        for n in range(count)
    ]


def head_source():
    draw = torch.Generator().manual_seed(1)
    shapes = {"w_q": (32, 16), "w_k": (WIDTH_P, 16), "w_v": (WIDTH_P, 16), "w_o": (16, 32)}
    tensors = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    tensors["head.weight"] = torch.randn(1, 32, generator=draw)
    data = Head(tensors, {}).to_bytes()
    return HeadSource("r", HeadKey("x", 0.5), "policy", lambda: data)


def test_in_deterministic_mode_a_reward_is_the_same_bit_for_bit_in_any_batch(backbones):
    async def rewards(engine):
        together = await engine.score(head_source(), items(20))
        alone = [(await engine.score(head_source(), [one]))[0] for one in items(20)]
        return [[one.reward for one in found] for found in (together, alone)]

    engine = TorchEngine(backbones["cuda"], deterministic=True)
    engine.start()
    together, alone = asyncio.run(rewards(engine))
    engine.stop()
    assert together == alone


def test_out_of_memory_is_an_error_of_that_work_alone(backbones):
    async def both(engine):
        few = items(2)
        before = await engine.score(head_source(), few)
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-6)
        try:
            # More than the allocator keeps at hand.
            large = [Item((n, *(5,) * 119), None) for n in range(3, 131)]
            refused = await engine.score(None, large)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return before, refused, await engine.score(head_source(), items(2))

    engine = TorchEngine(backbones["cuda"])
    engine.start()
    before, refused, after = asyncio.run(both(engine))
    alive = engine.alive
    engine.stop()
    assert all(isinstance(one, Problem) and one.code is Code.COMPUTE_FAILED for one in refused)
    assert [one.reward for one in after] == [one.reward for one in before]
    assert alive


@pytest.mark.parametrize("ahead_bytes", [0, 1 << 20, 256 << 20])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_copies_ahead_of_need_are_the_states(ahead_bytes, dtype):
    """From page-locked memory, beside a computation that keeps the GPU busy."""
    device = torch.device("cuda")
    pool = BufferPool(64 << 20, pinned)
    values = []
    for n in range(24):
        value = tensor_value(states(n, tokens=300 + n, width=512), dtype=dtype)
        data = pool.take(len(value.data))
        data[:] = value.data
        assert torch.frombuffer(data, dtype=torch.uint8).is_pinned()
        values.append(type(value)(value.dtype, value.shape, data))
    values[5] = None
    uploads = Uploads(values, device, ahead_bytes=ahead_bytes)
    busy = torch.randn(4096, 4096, device=device)
    for _ in range(20):
        busy = busy @ busy / 4096
    for place in reversed(range(24)):
        found = uploads.take(place)
        if values[place] is None:
            assert found is None
            continue
        expected = on_device(values[place], torch.device("cpu"))
        if dtype == "int8":
            found, expected = found.dense(), expected.dense()
        assert torch.equal(found.cpu(), expected)


def test_a_server_process_takes_states_into_page_locked_memory(model, tmp_path):
    """In bf16, as it is deployed, with the compiled model; a second run after a restart."""
    flags = ("--device", "cuda", "--dtype", "bfloat16", "--compile")
    found = []
    for _ in range(2):
        with (
            serving(model, tmp_path / "state", *flags) as server,
            Client(server.grpc, wire_dtype="bfloat16") as client,
        ):
            if not found:
                client.create_run("r", policy_hidden_size=WIDTH_P, method=METHOD)
                assert client.align("r", step=1, groups=groups(1)).accepted
            batch = [
                Sample(f"b{n}", "p", f"r {n}", states(n, tokens=2000)) for n in range(8)
            ]  # 96 KB each: large enough for pooled memory
            with client.score_stream(run="r") as stream:
                for one in batch:
                    stream.send(one)
                stream.finish()
                rewards = {score.id: score.reward for score in stream}
            found.append([rewards[one.id] for one in batch])
    assert found[0] == pytest.approx(found[1], abs=1e-2)
    assert np.std(found[0]) > 0


def test_doctor_knows_the_gpu(model):
    command = [sys.executable, "-m", "r2m_client.cli", "doctor", "--model", str(model)]
    command += ["--device", "cuda", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    said = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False
    )
    assert torch.cuda.get_device_name() in said.stdout, said.stdout + said.stderr
