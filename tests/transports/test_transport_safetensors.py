from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from transport_fakes import safetensors, sample
from transport_wires import Failure, http_failure, serving

from r2m.errors import Code, Problem
from r2m_service.transports.http import tensors as module
from r2m_service.transports.http.tensors import attach, decode

TENSORS = {"content-type": "application/x-safetensors"}
TWO = {"samples": [sample("a"), sample("b")]}
BYTES = bytes(range(16))


def malformed(body: bytes, code: Code = Code.INVALID_REQUEST) -> Problem:
    with pytest.raises(Problem) as caught:
        attach(*decode(body))
    assert caught.value.code is code
    assert len(caught.value.message) < 250
    return caught.value


def with_header(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: object = "F32", shape: object = (1, 2), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


META = {"__metadata__": {"request": json.dumps({"samples": [sample("a"), sample("b")]})}}


def test_tensors_are_views_into_the_body():
    body = bytearray(
        safetensors(TWO, {"a": ("F32", [2, 2], BYTES), "b": ("BF16", [1, 4], BYTES[:8])})
    )
    request, tensors = decode(body)
    assert request == TWO
    assert tensors["a"].data.obj is body
    body[-1] = 255
    assert bytes(tensors["b"].data)[-1] == 255
    tensors["a"].check()
    tensors["b"].check()


def test_what_the_safetensors_package_writes():
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((3, 4)).astype(np.float32),
        "b": rng.standard_normal((5, 4)).astype(np.float16),
    }
    body = save(arrays, {"request": json.dumps(TWO), "other": "x"})
    _, tensors = decode(body)
    for name, array in arrays.items():
        tensors[name].check()
        assert tensors[name].dtype == array.dtype.name
        assert tensors[name].shape == array.shape
        assert np.array_equal(np.frombuffer(tensors[name].data, array.dtype), array.ravel())


def test_numbers_at_odd_addresses_are_copied():
    body = safetensors(TWO, {"a": ("F32", [2, 2], BYTES)}, pad=False)
    for spaces in range(8):
        size = int.from_bytes(body[:8], "little") + spaces
        moved = struct.pack("<Q", size) + body[8:-16] + b" " * spaces + BYTES
        _, tensors = decode(moved)
        assert bytes(tensors["a"].data) == BYTES
        assert isinstance(tensors["a"].data, bytearray) == (size % 4 != 0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        with_header(b"\xff"),
        with_header([]),
        with_header({**META, "a": 1}),
        with_header({**META, "a": {"dtype": "F32"}}, BYTES[:8]),
        with_header({**META, "a": {**entry(), "more": 1}}, BYTES[:8]),
        with_header({**META, "a": entry(dtype=5)}, BYTES[:8]),
        with_header({**META, "a": entry(shape=5)}, BYTES[:8]),
        with_header({**META, "a": entry(shape=[-1, -2])}, BYTES[:8]),
        with_header({**META, "a": entry(shape=[True, 2])}, BYTES[:8]),
        with_header({**META, "a": entry(shape=[1.0, 2])}, BYTES[:8]),
        with_header({**META, "a": entry(shape=[2**70, 2])}, BYTES[:8]),
        with_header({**META, "a": entry(shape=[2**62, 4])}, BYTES[:8]),
        with_header({**META, "a": entry(shape=[1 << 31, 1 << 31, 1 << 31])}, BYTES[:8]),
        with_header({**META, "a": entry(shape=[1, 3])}, BYTES[:8]),
        with_header({**META, "a": entry(offsets=[0])}, BYTES[:8]),
        with_header({**META, "a": entry(offsets=[8, 0])}, BYTES[:8]),
        with_header({**META, "a": entry(offsets=[-8, 0])}, BYTES[:8]),
        with_header({**META, "a": entry()}, BYTES[:7]),  # beyond the buffer
        with_header({**META, "a": entry()}, BYTES[:9]),  # bytes behind
        with_header({**META, "a": entry(offsets=[1, 9])}, BYTES[:9]),  # a hole
        with_header({**META, "a": entry(), "b": entry(offsets=[4, 12])}, BYTES[:12]),  # overlap
        with_header({**META, "a": entry(), "b": entry()}, BYTES[:8]),  # the same bytes twice
        with_header({"a": entry()}, BYTES[:8]),  # no metadata
        with_header({"__metadata__": {}, "a": entry()}, BYTES[:8]),
        with_header({"__metadata__": {"request": 5}}),
        with_header({"__metadata__": {"request": "{"}}),
        with_header({**META, "c": entry()}, BYTES[:8]),  # belongs to no sample
    ],
)
def test_malformed_files(body):
    malformed(body)


def test_a_header_beyond_its_bound(monkeypatch):
    monkeypatch.setattr(module, "MAX_HEADER_BYTES", 100)
    malformed(safetensors(TWO, {}), Code.TOO_LARGE)


def test_the_order_of_the_header_is_free():
    header = {**META, "b": entry(offsets=[8, 16]), "a": entry()}
    _, tensors = decode(with_header(header, BYTES))
    assert bytes(tensors["a"].data) == BYTES[:8]
    assert bytes(tensors["b"].data) == BYTES[8:]


@pytest.mark.parametrize(
    ("stored", "name", "item"),
    [("BF16", "bfloat16", 2), ("F64", "float64", 8), ("I8", "int8", 1), ("F99", "f99", 3)],
)
def test_other_dtypes_are_their_samples_errors_not_the_files(stored, name, item):
    data = bytes(2 * item)
    request, tensors = decode(safetensors(TWO, {"a": (stored, [1, 2], data)}))
    assert attach(request, tensors)["samples"][0]["feedback"]["dtype"] == name


def test_tensors_go_to_the_samples_of_their_names():
    request = {
        "samples": [
            sample("a", feedback={"hidden_state": "pre_norm"}),
            sample("b"),
            sample("c", feedback={"dtype": "float32", "shape": [2, 2]}),
            sample("d"),
        ]
    }
    values = {name: ("F32", [2, 2], BYTES) for name in "abc"}
    attached = attach(*decode(safetensors(request, values)))
    a, b, c, d = attached["samples"]
    assert a["feedback"].pop("hidden_state") == "pre_norm"
    for one in (a, b, c):
        assert bytes(one["feedback"].pop("data")) == BYTES
        assert one["feedback"] == {"dtype": "float32", "shape": [2, 2]}
    assert "feedback" not in d


@pytest.mark.parametrize(
    ("feedback", "field"),
    [
        ({"dtype": "bfloat16"}, "samples[0].feedback.dtype"),
        ({"shape": [4, 1]}, "samples[0].feedback.shape"),
        ({"data": "AAAA"}, "samples[0].feedback.data"),
    ],
)
def test_a_sample_that_states_otherwise_than_its_tensor(feedback, field):
    request = {"samples": [sample("a", feedback=feedback)]}
    assert malformed(safetensors(request, {"a": ("F32", [2, 2], BYTES)})).field == field


INT8 = {"dtype": "int8", "shape": [2, 4]}
QUANTIZED = bytes(range(32))


def test_8_bit_states_are_bytes_whose_form_the_sample_states():
    request = {"samples": [sample("a", feedback=INT8)]}
    attached = attach(*decode(safetensors(request, {"a": ("U8", [32], QUANTIZED)})))
    feedback = attached["samples"][0]["feedback"]
    assert bytes(feedback.pop("data")) == QUANTIZED
    assert feedback == INT8


@pytest.mark.parametrize(
    ("feedback", "stored", "shape"),
    [
        (INT8, "I8", [32]),
        (INT8, "U8", [4, 8]),
        ({**INT8, "dtype": "bfloat16"}, "U8", [32]),
    ],
)
def test_other_bytes_are_not_taken_for_8_bit_states(feedback, stored, shape):
    request = {"samples": [sample("a", feedback=feedback)]}
    problem = malformed(safetensors(request, {"a": (stored, shape, QUANTIZED)}))
    assert problem.field in ("samples[0].feedback.dtype", "samples[0].feedback.shape")


def test_two_samples_of_one_id_in_two_groups():
    request = {"step": 1, "groups": [{"id": g, "samples": [sample("a")]} for g in "gh"]}
    problem = malformed(safetensors(request, {}), Code.DUPLICATE_ID)
    assert problem.field == "groups[1].samples[0].id"


def test_a_tensor_of_no_sample_is_named():
    assert "'zz'" in malformed(safetensors(TWO, {"zz": ("F32", [2, 2], BYTES)})).message


async def test_score_and_align_take_them():
    values = {"a": ("BF16", [2, 4], BYTES)}
    async with serving() as wires:
        body = safetensors(TWO, values)
        got = await wires.http.post("/v1/runs/x/score", content=body, headers=TENSORS)
        assert [one["id"] for one in got.json()["scores"]] == ["a", "b"]
        align = {"step": 1, "groups": [{"id": "g", "samples": [sample("a")]}]}
        body = safetensors(align, values)
        got = await wires.http.post("/v1/runs/x/align", content=body, headers=TENSORS)
        assert got.json()["step"] == 1
        (_, _, scored), (_, _, aligned) = wires.application.calls
        for one in (scored.samples[0], aligned.groups[0].samples[0]):
            assert (one.feedback.dtype, one.feedback.shape) == ("bfloat16", [2, 4])
            assert bytes(one.feedback.data) == BYTES
        wrong = {"samples": [{"id": "a", "prompt": 5}]}
        refused = http_failure(
            await wires.http.post("/v1/score", content=safetensors(wrong, {}), headers=TENSORS)
        )
        assert refused.field == "samples[0].prompt"


VALID = safetensors(TWO, {"a": ("F32", [2, 2], BYTES), "b": ("BF16", [1, 4], BYTES[:8])})


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    body = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(body) - 1, 0)))
        match draw(st.integers(0, 4)):
            case 0:
                body[at : at + 1] = draw(st.binary(max_size=3))
            case 1:
                del body[at : at + draw(st.integers(1, 20))]
            case 2:
                body[at:at] = body[: draw(st.integers(0, 30))]
            case 3:
                del body[at:]
            case _:
                digits = [i for i, one in enumerate(body) if chr(one).isdigit()]
                if digits:
                    body[draw(st.sampled_from(digits))] = draw(st.sampled_from(b'0123456789-.eE"['))
    return bytes(body)


@settings(max_examples=400)
@given(mutations())
def test_mutated_files_are_read_or_refused(body):
    found, tensors = None, {}
    try:
        request, tensors = decode(body)
        attach(request, tensors)
    except Problem as problem:
        found = problem
    if found is not None:
        assert found.code in (Code.INVALID_REQUEST, Code.DUPLICATE_ID)
        json.dumps(found.as_dict())
    for tensor in tensors.values():
        if tensor.dtype in ("float32", "bfloat16") and len(tensor.shape) == 2 and tensor.data:
            tensor.check()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=mutations())
def test_mutated_files_over_http(body, runner):
    async def call():
        got = await runner.wires.over_http("POST", "/v1/score", content=body, headers=TENSORS)
        assert not isinstance(got, Failure) or got.status < 500

    runner.run(call())
