"""Hidden states on the wire: from arrays of all kinds to the bytes that arrive."""

import json
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from r2m.tensors import ITEM_BYTES, TensorValue, bfloat16_bytes, tensor_value
from r2m.v1 import r2m_pb2 as pb
from r2m_client import Group, Sample
from r2m_client._calls import align, score
from r2m_client._grpc_wire import AlignUpload, Unary, grpc_request
from r2m_client._http import http_request
from r2m_client._safetensors import PIECE_BYTES
from r2m_client._samples import WIRE_DTYPES, wire_value

TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
GRID = np.linspace(-3, 3, 20, dtype=np.float64).reshape(5, 4)


def decoded(feedback, data):
    """What a server reads, as a float32 tensor."""
    tensor = torch.frombuffer(bytearray(data), dtype=TORCH[feedback["dtype"]])
    return tensor.reshape([int(n) for n in feedback["shape"]]).float()


@pytest.mark.parametrize("wire_dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    ("make", "fixed"),
    [
        (lambda: GRID, None),
        (lambda: GRID.astype(np.float32), None),
        (lambda: GRID.astype(">f4"), None),
        (lambda: GRID.astype(np.float16), "float16"),
        (lambda: GRID.astype(np.float32).T.copy().T, None),
        (lambda: np.repeat(GRID.astype(np.float32), 2, axis=0)[::2], None),
        (lambda: GRID.tolist(), None),
        (lambda: (GRID * 10).astype(np.int64), None),
        (lambda: torch.tensor(GRID, dtype=torch.float32), None),
        (lambda: torch.tensor(GRID, dtype=torch.float64), None),
        (lambda: torch.tensor(GRID, dtype=torch.bfloat16), "bfloat16"),
        (lambda: torch.tensor(GRID, dtype=torch.bfloat16).T.contiguous().T, "bfloat16"),
        (lambda: torch.tensor(GRID, dtype=torch.float16), "float16"),
        (lambda: torch.tensor(GRID, dtype=torch.float32, requires_grad=True), None),
    ],
    ids=[
        "float64",
        "float32",
        "big endian",
        "float16",
        "transposed",
        "strided",
        "list",
        "int64",
        "torch float32",
        "torch float64",
        "torch bfloat16",
        "torch transposed",
        "torch float16",
        "torch grad",
    ],
)
def test_arrays_of_all_kinds(server, script, open_caller, make, fixed, wire_dtype):
    caller = open_caller(server.url, wire_dtype=wire_dtype)
    states = make()
    caller("score", [Sample("a", "p", "r", states)], run="tldr")
    feedback = script.seen[0].request["samples"][0]["feedback"]
    assert feedback["dtype"] == (fixed or wire_dtype)
    assert [int(n) for n in feedback["shape"]] == [5, 4]
    expected = states if torch.is_tensor(states) else torch.tensor(np.asarray(states).tolist())
    expected = expected.detach().to(TORCH[fixed or wire_dtype]).float()
    assert torch.equal(decoded(feedback, script.seen[0].tensors["a"]), expected)


def test_what_a_sample_states_goes_along(caller, script):
    states = np.ones((2, 4), np.float32)
    stated = Sample("a", "p", "r", states, hidden_state="pre_norm", last_token=False, tokens=3)
    plain = Sample("b", "p", "r", states)
    text = Sample("c", "p", "r", last_token=True)
    caller("score", [stated, plain, text], run="tldr")
    first, second, third = script.seen[0].request["samples"]
    assert first["feedback"].pop("shape") in ([2, 4], ["2", "4"])
    assert int(first["feedback"].pop("tokens")) == 3
    assert first["feedback"] == {
        "dtype": "bfloat16",
        "hidden_state": "pre_norm",
        "last_token": False,
    }
    assert set(second["feedback"]) == {"dtype", "shape"}
    assert "feedback" not in third
    assert set(script.seen[0].tensors) == {"a", "b"}


def test_align_gives_every_sample_its_own_states(caller, script):
    groups = [
        Group(g, [Sample(f"{g}{k}", "p", "r", np.full((1, 2), 10 * i + k)) for k in range(2)])
        for i, g in enumerate("xy")
    ]
    groups[0].samples.insert(1, Sample("text", "p", "r"))
    caller("align", "tldr", step=1, groups=groups)
    request = script.seen[0].request
    found = {
        s["id"]: decoded(s["feedback"], script.seen[0].tensors[s["id"]])[0, 0].item()
        for group in request["groups"]
        for s in group["samples"]
        if "feedback" in s
    }
    assert found == {"x0": 0, "x1": 1, "y0": 10, "y1": 11}


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (np.zeros(4, np.float32), r"shape \[4\], expected \[tokens, width\]"),
        (np.zeros((1, 2, 4), np.float32), r"shape \[1, 2, 4\]"),
        (torch.zeros(4), r"shape \[4\]"),
        (np.array([["a", "b"]]), "numbers"),
        (np.zeros((2, 2), complex), "numbers"),
        ([[1.0, 2.0], [3.0]], "inhomogeneous"),
        (object(), "sample 'a'"),
        (TensorValue("int4", (1, 2), b"ab"), "int4"),
        (TensorValue("int8", (1, 2), b"ab"), "2 bytes, its shape takes 14"),
        (TensorValue("float32", (1, 2), b"1234567"), "7 bytes, its shape takes 8"),
        (TensorValue("float32", (2,), b"12345678"), r"shape \[2\]"),
    ],
)
def test_what_is_no_matrix_of_numbers(caller, script, states, words):
    with pytest.raises(ValueError, match=words) as caught:
        caller("score", [Sample("a", "p", "r", states)], run="tldr")
    assert "sample 'a'" in str(caught.value)
    assert not script.seen


@pytest.mark.parametrize("states", [np.zeros((0, 4), np.float32), torch.zeros(0, 4)])
def test_an_empty_response_is_for_the_server_to_refuse_alone(caller, script, states):
    good = Sample("b", "p", "r", np.ones((1, 4)))
    caller("score", [Sample("a", "p", "", states), good], run="tldr")
    feedback = script.seen[0].request["samples"][0]["feedback"]
    assert [int(n) for n in feedback["shape"]] == [0, 4]


def test_a_tensor_value_goes_as_it_is(caller, script):
    value = tensor_value(GRID, dtype="float16")
    caller("score", [Sample("a", "p", "r", value)], run="tldr")
    assert script.seen[0].request["samples"][0]["feedback"]["dtype"] == "float16"
    assert script.seen[0].tensors["a"] == bytes(value.data)


def test_text_that_no_encoding_can_carry(caller, script):
    with pytest.raises(ValueError, match=r"surrogates not allowed|Unpaired surrogate"):
        caller("score", [Sample("\ud83d", "p", "r")])
    assert not script.seen
    turns = [{"role": "user", "content": "\udc00"}, {"role": "assistant", "content": "r"}]
    halves = [
        Sample("a", "p", "half \ud83d"),
        Sample("b", "p\udfff", "r"),
        Sample("c", messages=turns),
        Sample("d", "p", "r"),
    ]
    caller("score", halves)
    sent = script.seen[0].request["samples"]
    named = ["response", "prompt", "messages[0].content", None]
    assert [one.get("unencodable") for one in sent] == named
    assert [one.get("prompt") for one in sent] == [None, None, None, "p"]


def test_true_is_no_token_id(caller, script):
    with pytest.raises(ValueError, match="token_ids of sample 'a' are whole numbers, got True"):
        caller("score", [Sample("a", token_ids=[5, True])])
    assert not script.seen


def test_wire_dtypes_are_those_of_the_protocol():
    assert set(WIRE_DTYPES) == set(ITEM_BYTES)


# ------------------------------------------------------------------ bfloat16


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
        elements=st.floats(width=32, allow_nan=True),
    )
)
def test_bfloat16_rounds_as_torch_does(values):
    ours = torch.from_numpy(bfloat16_bytes(values).view(np.int16).copy()).view(torch.bfloat16)
    theirs = torch.from_numpy(values).bfloat16()
    assert torch.equal(ours.isnan(), theirs.isnan())
    same = ours.view(torch.int16) == theirs.view(torch.int16)
    assert bool((same | ours.isnan()).all())


@given(st.integers(0, 0xFFFF), st.sampled_from([0x7FFF, 0x8000, 0x8001]))
def test_bfloat16_ties_go_to_even(high, low):
    bits = (high << 16) | low
    value = np.array([struct.unpack("<f", struct.pack("<I", bits))[0]], np.float32)
    if not np.isfinite(value).all():
        return
    expected = torch.from_numpy(value).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert bfloat16_bytes(value) == expected


@given(
    hnp.arrays(np.float64, (3, 2), elements=st.floats(-1e30, 1e30)),
    st.sampled_from(["bfloat16", "float32"]),
)
def test_numpy_and_torch_send_the_same(values, wire_dtype):
    single = values.astype(np.float32)
    ours = wire_value(Sample("a", "", "", single), wire_dtype)
    theirs = wire_value(Sample("a", "", "", torch.from_numpy(single)), wire_dtype)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert bytes(ours.data) == bytes(theirs.data)


# ------------------------------------------------------------------ the forms of a body


def scored(samples, wire_dtype="bfloat16"):
    return score(samples, run="tldr", head="live", wire_dtype=wire_dtype)


def test_text_goes_as_json():
    request = http_request(scored([Sample("a", "p", "r")]))
    assert request.headers["Content-Type"] == "application/json"
    assert len(request.pieces) == 1


def test_a_body_is_a_safetensors_file_whatever_dtypes_it_mixes():
    mixed = {
        "h": torch.full((3, 1), 2.0, dtype=torch.float16),
        "b": torch.full((1, 4), 3.0, dtype=torch.bfloat16),
        "f": torch.full((2, 2), 4.0),
        "ü/..": torch.full((1, 1), 5.0, dtype=torch.bfloat16),
    }
    samples = [Sample(name, "p", "r", tensor) for name, tensor in mixed.items()]
    request = http_request(scored(samples, "float32"))
    body = b"".join(request.pieces)
    assert request.headers["Content-Length"] == str(len(body))
    found = safetensors.torch.load(body)
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in mixed.items()
    }
    assert all(torch.equal(found[name], mixed[name]) for name in mixed)
    size = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + size])
    del header["__metadata__"]
    for name, entry in header.items():  # readers that do not copy need aligned numbers
        assert (8 + size + entry["data_offsets"][0]) % mixed[name].element_size() == 0


def test_http_sends_from_where_the_numbers_lie():
    """No copy of float32 states, and no piece that a socket would copy over and over."""
    states = np.zeros((300, 1024), np.float32)
    pieces = http_request(scored([Sample("a", "p", "r", states)], "float32")).pieces[1:]
    assert sum(len(piece) for piece in pieces) == states.nbytes
    assert max(len(piece) for piece in pieces) <= PIECE_BYTES
    states[0, 0] = 1.0
    assert bytes(pieces[0][:4]) == struct.pack("<f", 1.0)


def test_a_repeated_id_still_is_a_whole_file(http_server, script, open_caller):
    same = [Sample("a", "p", str(i), np.full((1, 2), i)) for i in range(2)]
    script.steps.append(
        lambda seen: {"fingerprint": "f", "run": "r", "scores": [{"id": "a"}, {"id": "a"}]}
    )
    open_caller(http_server.url)("score", same, run="tldr")
    assert [s["id"] for s in script.seen[0].request["samples"]] == ["a", "a"]
    assert len(script.seen[0].tensors["a"]) == 4


def test_the_name_that_safetensors_keeps_for_itself():
    with pytest.raises(ValueError, match="__metadata__"):
        http_request(scored([Sample("__metadata__", "p", "r", np.ones((1, 1)))]))


def aligned(rows, progress=None):
    samples = [Sample(str(i), "p", "r", np.full((n, 1024), i)) for i, n in enumerate(rows)]
    return align(
        "tldr",
        step=1,
        groups=[Group("g", samples)],
        branch=None,
        progress=progress,
        wire_dtype="bfloat16",
    )


def test_a_small_align_is_one_message():
    assert isinstance(grpc_request(aligned([1024])), Unary)  # exactly 2 MiB
    assert isinstance(grpc_request(aligned([1025])), AlignUpload)
    assert isinstance(grpc_request(aligned([1], progress=print)), AlignUpload)


def test_chunks_of_a_stream():
    upload = grpc_request(aligned([700, 1, 1300]))
    assert isinstance(upload, AlignUpload)
    parts = [pb.AlignStreamRequest.FromString(payload) for payload in upload.payloads()]
    first, chunks = parts[0].request, [part.chunk for part in parts[1:]]
    assert not any(sample.feedback.data for group in first.groups for sample in group.samples)
    assert [s.feedback.dtype for g in first.groups for s in g.samples] == ["bfloat16"] * 3
    assert [chunk.id for chunk in chunks] == ["0", "0", "1", "2", "2", "2"]
    assert max(len(chunk.data) for chunk in chunks) == 1 << 20
    assert sum(len(chunk.data) for chunk in chunks) == 2001 * 1024 * 2


def test_progress_is_passed_on(grpc_server, script, open_caller, is_async):
    told = []
    caller = open_caller(grpc_server.url, is_async=is_async)
    result = caller("align", "tldr", step=1, groups=[], progress=told.append)
    assert result.candidate == 1
    assert [(now.groups_done, now.groups_total) for now in told] == [(1, 2), (2, 2)]


def test_what_progress_raises_ends_the_call(grpc_server, script, open_caller, is_async):
    def stop(_):
        raise KeyError("enough")

    caller = open_caller(grpc_server.url, is_async=is_async)
    with pytest.raises(KeyError):
        caller("align", "tldr", step=1, groups=[], progress=stop)
    assert len(script.seen) == 1


def test_a_stream_that_ends_without_an_answer(grpc_server, script, open_caller, is_async):
    from r2m_client import ProtocolError

    script.steps.append({})
    caller = open_caller(grpc_server.url, is_async=is_async)
    with pytest.raises(ProtocolError, match="without an answer"):
        caller("align", "tldr", step=1, groups=[], progress=print)
