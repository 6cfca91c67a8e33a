from __future__ import annotations

import asyncio

import pytest
from transport_wires import Failure, serving

from r2m.errors import Code, Problem
from r2m.v1 import r2m_pb2 as pb
from r2m_service.transports.limits import ByteBudget, within


async def hold(budget: ByteBudget, size: int, until: asyncio.Event, *, wait: bool = True) -> None:
    async with budget.hold(size, wait=wait):
        await until.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_holders_are_served_in_order_and_never_beyond_the_bound():
    budget, first, second, third = ByteBudget(10), *(asyncio.Event() for _ in range(3))
    one = asyncio.create_task(hold(budget, 6, first))
    await settle()
    two = asyncio.create_task(hold(budget, 8, second))
    await settle()
    three = asyncio.create_task(hold(budget, 1, third))  # would fit, but came later
    await settle()
    assert budget.used == 6
    with pytest.raises(Problem) as caught:  # nor may an impatient one pass those who wait
        await hold(budget, 1, third, wait=False)
    assert caught.value.code is Code.OVERLOADED
    first.set()
    await settle()
    assert budget.used == 9
    for event in (second, third):
        event.set()
    await asyncio.gather(one, two, three)
    assert budget.used == 0


async def test_a_waiter_that_is_cancelled_lets_the_next_one_through():
    budget, done = ByteBudget(10), asyncio.Event()
    one = asyncio.create_task(hold(budget, 6, done))
    await settle()
    two = asyncio.create_task(hold(budget, 8, done))
    await settle()
    three = asyncio.create_task(hold(budget, 4, done))
    await settle()
    two.cancel()
    await settle()
    assert budget.used == 10
    done.set()
    await asyncio.gather(one, three)
    assert budget.used == 0


async def test_what_could_never_fit_is_too_large():
    for wait in (True, False):
        with pytest.raises(Problem) as caught:
            await hold(ByteBudget(10), 11, asyncio.Event(), wait=wait)
        assert caught.value.code is Code.TOO_LARGE


async def test_room_is_given_back_when_the_holder_fails():
    budget = ByteBudget(10)
    with pytest.raises(ZeroDivisionError):
        async with budget.hold(10, wait=False):
            raise ZeroDivisionError
    assert budget.used == 0


async def test_waiting_has_an_end():
    with pytest.raises(Problem) as caught:
        await within(0.01, asyncio.sleep(30))
    assert caught.value.code is Code.DEADLINE_EXCEEDED


async def test_both_transports_share_one_budget():
    budget = ByteBudget(100)
    async with serving(budget=budget, max_bytes=100) as wires:
        wires.application.score_seconds = 30
        body = b'{"samples": []}'.ljust(90)
        waiting = asyncio.create_task(wires.http.post("/v1/score", content=body))
        await wires.application.begun.wait()
        assert budget.used == 90
        message = pb.ScoreRequest(samples=[pb.Sample(id="a", prompt="0123456789")])
        refused = await wires.over_grpc("Score", message)
        assert isinstance(refused, Failure)
        assert (refused.code, refused.status.name) == ("overloaded", "RESOURCE_EXHAUSTED")
        refused = await wires.over_http("POST", "/v1/score", content=b'{"samples": []}')
        assert isinstance(refused, Failure)
        assert (refused.code, refused.status, refused.pause) == ("overloaded", 429, 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert budget.used == 0
