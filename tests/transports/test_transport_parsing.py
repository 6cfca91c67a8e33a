from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2m.errors import Code, Problem
from r2m_service.application.contract import AlignRequest, CreateRunRequest, ScoreRequest
from r2m_service.application.parsing import excerpt, parse, parse_json
from r2m_service.domain.method import Gate, Omega


def refused(model: type, value: Any, **more: Any) -> Problem:
    read = parse_json if isinstance(value, bytes) else parse
    with pytest.raises(Problem) as caught:
        read(model, value, **more)
    assert caught.value.code is Code.INVALID_REQUEST
    assert "pydantic" not in caught.value.message
    return caught.value


SAMPLE = {"id": "a", "prompt": "p", "response": "r"}


@pytest.mark.parametrize(
    ("value", "field", "message"),
    [
        ({"samples": [SAMPLE] * 3 + [{"prompt": "d"}]}, "samples[3].id", "missing"),
        ({"samples": [{**SAMPLE, "prompt": 5}]}, "samples[0].prompt", "a string, got 5"),
        ({"samples": [{**SAMPLE, "promt": "x"}]}, "samples[0].promt", "not a key"),
        ({"samples": [SAMPLE, 7]}, "samples[1]", "an object, got 7"),
        ({"samples": {}}, "samples", "a list, got an object"),
        ({"samples": [{**SAMPLE, "id": ""}]}, "samples[0].id", "at least 1 character"),
        ({"samples": [{**SAMPLE, "format": "x"}]}, "samples[0].format", "'chat', 'raw' or ''"),
        ({"samples": [], "head": None}, "head", "a string, got null"),
        ({"samples": [], "head": {}}, "head", "a string, got an object"),
        ({"samples": [], "head": [1]}, "head", "a string, got a list"),
        (
            {"samples": [{**SAMPLE, "feedback": {"dtype": "x", "shape": [1, "y"]}}]},
            "samples[0].feedback.shape[1]",
            "whole number, got 'y'",
        ),
        ([], None, "the request must be an object, got a list"),
        (None, None, "the request must be an object, got null"),
    ],
)
def test_the_first_error_is_named_by_its_place(value, field, message):
    problem = refused(ScoreRequest, value)
    assert problem.field == field
    assert message in problem.message


def test_further_errors_are_counted_by_field_not_by_union_member():
    one = refused(ScoreRequest, {"samples": [], "head": None})  # two errors of one union
    assert "more wrong" not in one.message
    three = refused(ScoreRequest, {"samples": [{"id": 1, "prompt": 2, "response": 3}]})
    assert three.message == "samples[0].id must be a string, got 1 (2 more wrong besides)"
    # A list stops at its first bad entry: a million of them would cost gigabytes to describe.
    many = refused(ScoreRequest, {"samples": [5] * 1000})
    assert many.message == "samples[0] must be an object, got 5"


@pytest.mark.parametrize("step", ["0", 0, -3, 2**31, 10**400, 1.5, "x", None, float("inf")])
def test_steps_out_of_range(step):
    problem = refused(AlignRequest, {"step": step, "groups": []})
    assert problem.field == "step"
    assert len(problem.message) < 80


def test_long_values_and_keys_are_cut():
    problem = refused(ScoreRequest, {"samples": [{**SAMPLE, "format": "x" * 10**6}]})
    assert len(problem.message) < 200
    problem = refused(ScoreRequest, {"samples": [], "k" * 10**6: 1})
    assert len(problem.message) < 200
    assert problem.field is not None
    assert len(problem.field) < 100


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"samples": [{"id": "\xff"}]}',
        b'{"samples": [{"id": "\\ud800", "prompt": "p", "response": "r"}]}',
        b"[" * 100_000,
        b'{"samples":' * 50_000,
        b'{"step": ' + b"9" * 100_000 + b"}",
        b'{"step": NaN}',
        b'\xef\xbb\xbf{"step": 1, "groups": []}',
        b'{"step": 1, "groups": []} x',
    ],
)
def test_what_is_no_json(raw):
    for model in (AlignRequest, CreateRunRequest):
        assert len(refused(model, raw).message) < 200


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_numbers_are_those_of_json(number):
    refused(CreateRunRequest, b'{"run": "a", "method": {"alpha": ' + number + b"}}")


def test_a_lone_surrogate_in_a_value_is_refused():
    assert refused(ScoreRequest, {"samples": [{**SAMPLE, "id": "\ud800"}]})


def test_nested_fields_of_a_dataclass():
    assert parse(Gate, {"spread_min": 0.25}).spread_min == 0.25
    problem = refused(Omega, {"kind": "constant"}, field="method.omega")
    assert problem.field == "method.omega"
    assert problem.message == ("method.omega is not right: omega of kind constant needs `value`")
    problem = refused(Gate, {"spread_mim": 1}, field="method.gate")
    assert problem.field == "method.gate.spread_mim"
    assert "not a key" in problem.message


def test_good_requests_pass():
    request = parse_json(CreateRunRequest, b'{"run": "a", "method": {"width": 8}}')
    assert request.method == {"width": 8}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["samples", "head", "id", "prompt", "response", "feedback", "shape"]
                )
                | st.text(max_size=3),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_value_is_a_request_or_a_problem(value):
    found = None
    try:
        parse(ScoreRequest, value)
    except Problem as problem:
        found = problem
    if found is not None:
        assert found.code is Code.INVALID_REQUEST
        json.dumps(found.as_dict())
    assert len(excerpt(value)) < 300
