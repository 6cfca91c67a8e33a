"""Hidden states in 8 bits: what is sent, and what of it is refused."""

import struct

import numpy as np
import pytest
import torch

from r2m import int8
from r2m.errors import Code, Problem
from r2m.tensors import TensorValue, tensor_value
from r2m_client import ChannelScales, Group, Sample

GRID = np.random.default_rng(1).standard_normal((5, 4)) * [1, 10, 0.1, 3]


def by_hand(data, tokens, width):
    """The layout, read number by number."""
    channel = struct.unpack_from(f"<{width}f", data, 0)
    token = struct.unpack_from(f"<{tokens}f", data, 4 * width)
    q = struct.unpack_from(f"<{tokens * width}b", data, 4 * (width + tokens))
    assert len(data) == 4 * (width + tokens) + tokens * width
    return np.array(
        [[q[s * width + p] * token[s] * channel[p] for p in range(width)] for s in range(tokens)]
    )


@pytest.mark.parametrize("make", [lambda: GRID, lambda: GRID.tolist(), lambda: torch.tensor(GRID)])
def test_the_layout_is_the_documented_one(make):
    value = tensor_value(make(), dtype="int8")
    assert (value.dtype, value.shape) == ("int8", (5, 4))
    value.check()
    found = by_hand(value.data, 5, 4)
    # Half a step of a number's token and channel.
    steps = np.abs(GRID).max(axis=0) * (np.abs(GRID) / np.abs(GRID).max(axis=0)).max(1)[:, None]
    assert (np.abs(found - GRID) <= 0.501 * steps / 127).all()
    assert np.abs(found - GRID).max() > 0
    assert int8.decode(value.data, value.shape) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("states", [GRID.astype(np.float16), torch.tensor(GRID).bfloat16()])
def test_16_bit_states_become_8_bit_ones_too(states):
    value = tensor_value(states, dtype="int8")
    exact = states.astype(np.float32) if isinstance(states, np.ndarray) else states.float().numpy()
    assert np.abs(int8.decode(value.data, value.shape) - exact).max() < 0.1


def test_numpy_and_torch_send_the_same_bytes():
    states = np.random.default_rng(3).standard_normal((40, 24)).astype(np.float32)
    scales = ChannelScales.of(states[:20])
    theirs = ChannelScales.of(torch.tensor(states[:20]))
    assert theirs.channel == pytest.approx(scales.channel, rel=1e-6)
    for one in (scales.quantize, lambda h: tensor_value(h, dtype="int8")):
        ours = np.frombuffer(one(states).data, np.int8)
        theirs = np.frombuffer(one(torch.tensor(states, requires_grad=True)).data, np.int8)
        assert np.abs(ours.astype(int) - theirs).max() <= 1
        assert (ours != theirs).mean() < 0.02


def test_channel_scales_are_root_mean_squares_and_stay():
    first, second = GRID[:2], GRID[2:].astype(np.float32)
    scales = ChannelScales.of(first, torch.tensor(second))
    assert scales.channel == pytest.approx(np.sqrt((GRID**2).mean(0)), rel=1e-5)
    for states in (first * 100, second):
        value = scales.quantize(states)
        assert (int8.scales(value.data, value.shape)[0] == scales.channel).all()
        found = int8.decode(value.data, value.shape)
        share = np.abs(found - states) / np.abs(states / scales.channel).max(1)[:, None]
        assert (share <= 0.501 / 127 * scales.channel).all()  # and so nothing was clipped


def test_a_channel_that_was_silent_is_not_lost():
    scales = ChannelScales.of([[1.0, 0.0]])
    value = scales.quantize([[0.5, 2.0]])
    assert int8.decode(value.data, value.shape)[0, 1] == pytest.approx(2.0)
    assert (ChannelScales.of([[0.0, 0.0]]).channel == 1).all()


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_zeros_and_very_small_numbers_are_numbers(kind):
    states = np.array([[0.0, 0.0, 1e-40], [0.0, 1e-38, 0.0], [1e30, 1.0, 0.0]], np.float32)
    value = tensor_value(kind(states), dtype="int8")
    value.check()
    found = int8.decode(value.data, value.shape)
    assert found[2, 0] == pytest.approx(1e30)
    assert np.abs(found - states)[:2].max() < 1e-37


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("static", [False, True])
def test_what_is_not_finite_never_becomes_a_number(kind, bad, static):
    states = np.ones((3, 4), np.float32)
    states[1, 2] = bad
    quantize = ChannelScales.of(GRID).quantize if static else None
    value = quantize(kind(states)) if quantize else tensor_value(kind(states), dtype="int8")
    with pytest.raises(Problem, match="scales are negative, NaN or infinite") as caught:
        value.check()
    assert caught.value.code is Code.FEEDBACK_NOT_FINITE
    assert caught.value.field == "feedback.data"


@pytest.mark.parametrize(
    ("place", "number", "words"),
    [
        (0, -1.0, "1 of 4 channel scales .* first that of channel 0: -1.0"),
        (3, float("nan"), "1 of 4 channel scales .* first that of channel 3: nan"),
        (5, float("inf"), "1 of 5 token scales .* first that of token 1: inf"),
    ],
)
def test_scales_that_no_states_have_are_refused_by_name(place, number, words):
    data = bytearray(tensor_value(GRID, dtype="int8").data)
    data[4 * place : 4 * place + 4] = struct.pack("<f", number)
    with pytest.raises(Problem, match=words):
        TensorValue("int8", (5, 4), data).check()


def test_a_wrong_size_is_refused():
    data = tensor_value(GRID, dtype="int8").data
    for wrong in (data[:-1], bytes(data) + b"x", data[:20]):
        with pytest.raises(Problem, match=f"takes 56 bytes, got {len(wrong)}") as caught:
            TensorValue("int8", (5, 4), wrong).check()
        assert caught.value.code is Code.FEEDBACK_SIZE


def test_an_empty_text_is_for_the_server_to_refuse():
    assert tensor_value(np.zeros((0, 4)), dtype="int8").shape == (0, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ChannelScales([1, 0]),
        lambda: ChannelScales([[1.0]]),
        ChannelScales.of,
        lambda: ChannelScales.of([[float("nan")]]),
        lambda: ChannelScales.of([1.0]),
        lambda: ChannelScales.of(GRID).quantize(GRID[:, :2]),
        lambda: ChannelScales.of(GRID).quantize(GRID[0]),
    ],
)
def test_misuse(wrong):
    with pytest.raises(ValueError, match=r"scales|shape"):
        wrong()


def test_it_is_sent_as_it_is(open_caller, server, script):
    caller = open_caller(server.url, wire_dtype="int8")
    value = ChannelScales.of(GRID).quantize(GRID)
    odd = np.ones((3, 1), np.float32)
    caller(
        "align",
        "tldr",
        step=1,
        groups=[
            Group(
                "g",
                [
                    Sample("a", "p", "r", value),
                    Sample("b", "p", "r", odd),
                    Sample("c", "p", "r", TensorValue("float32", (1, 1), bytes(4))),
                ],
            )
        ],
    )
    sent = script.seen[0].request["groups"][0]["samples"]
    shapes = [[int(n) for n in one["feedback"]["shape"]] for one in sent]
    assert [one["feedback"]["dtype"] for one in sent] == ["int8", "int8", "float32"]
    assert shapes == [[5, 4], [3, 1], [1, 1]]
    assert script.seen[0].tensors["a"] == bytes(value.data)
    assert script.seen[0].tensors["b"] == bytes(tensor_value(odd, dtype="int8").data)
