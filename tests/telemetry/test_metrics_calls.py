"""Where calls are counted: what came of them, their parts, and what bounds refuse."""

import asyncio
import json
import pathlib
from types import SimpleNamespace

import pytest

from r2m.errors import Code, Problem
from r2m_service.application.line import Line
from r2m_service.application.timings import Timings, timed, timings
from r2m_service.engine.scoring import _calls
from r2m_service.transports.counting import counted, note, snake
from r2m_service.transports.grpc.methods import UNARY
from r2m_service.transports.http.answers import PROBES, method_of
from r2m_service.transports.limits import ByteBudget, RequestLimit

ROOT = pathlib.Path(__file__).parents[2]


class Heard:
    def __init__(self):
        self.calls = []

    def called(self, call):
        self.calls.append(call)

    @property
    def codes(self):
        return [one.code for one in self.calls]


def test_what_leaves_a_call_is_its_code():
    heard = Heard()
    with counted(heard, "http", "score"):
        pass
    with pytest.raises(Problem), counted(heard, "grpc", "score"):
        raise Problem(Code.OVERLOADED, "later")
    with pytest.raises(asyncio.CancelledError), counted(heard, "grpc", "score"):
        raise asyncio.CancelledError
    with counted(heard, "http", "score"):
        note("not_found")
    with counted(heard, "http", "livez") as outcome:
        outcome.counts = False
    note("nobody's")
    assert heard.codes == ["ok", "overloaded", "cancelled", "not_found"]


def test_a_stream_has_no_length_and_its_samples_have():
    heard = Heard()
    with counted(heard, "grpc", "score_stream"), timed() as whole:
        for _ in range(2):
            with counted(heard, "grpc", "stream_sample", part=True):
                timings().add("queue", 0.5)
                timings().add("backbone", 0.25)  # the device counts a batch for the whole by itself
    first, second, stream = heard.calls
    assert first.stages == second.stages == {"queue": 0.5, "backbone": 0.25}
    assert first.seconds >= 0
    assert (stream.seconds, stream.stages) == (None, {})
    assert whole.seconds == {"queue": 1.0}


def test_a_batch_counts_once_for_a_stream_whatever_it_holds_of_it():
    stream, alone = Timings(), Timings()
    parts = [Timings(stream), Timings(stream), alone, alone]
    found = _calls([SimpleNamespace(timings=one) for one in parts])
    assert sorted(map(id, found)) == sorted(map(id, [*parts[:3], stream]))


def test_methods_have_one_name_on_both_transports():
    document = json.loads((ROOT / "docs" / "openapi.json").read_text())
    http = {
        method_of(one["operationId"])
        for path in document["paths"].values()
        for one in path.values()
        if one["operationId"] not in PROBES
    }
    compat = {
        method_of(one["operationId"])
        for path in document["paths"].values()
        for one in path.values()
        if one["tags"] == ["trainers"]
    }
    grpc = {snake(name) for name in UNARY} | {"get_head_weights", "align_stream", "score_stream"}
    named_otherwise = {"head_weights"}
    assert http - compat - named_otherwise <= grpc
    assert method_of(None) == "unknown"


def test_bounds_count_what_they_refuse():
    asyncio.run(refuse())


async def refuse():
    budget, requests, line = ByteBudget(10), RequestLimit(1), Line(1)
    async with budget.hold(8, wait=False):
        for refused in (
            budget.hold(5, wait=False),
            budget.hold(5, wait=True, patience=0.001),
        ):
            with pytest.raises(Problem):
                async with refused:
                    pass
    with pytest.raises(Problem) as too_large:  # no bound of the load's
        async with budget.hold(11, wait=False):
            pass
    assert too_large.value.code == Code.TOO_LARGE
    with requests.hold(), pytest.raises(Problem), requests.hold():
        pass
    line.require_room("a")
    with line.hold("a", 1), pytest.raises(Problem):
        line.require_room("a")
    assert (budget.refused, requests.refused, line.refused) == (2, 1, 1)
