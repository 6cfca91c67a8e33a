"""Trainers as they are: what they ask, when they ask again, and what becomes of it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from compat_trainers import GaveUpError, OpenRLHF, Slime, Verl
from transport_fakes import FakeApplication

from r2m.errors import Code, Problem
from r2m_service.transports.http.app import build_app


class Trouble:
    """An application that is in trouble until a trainer has waited often enough.

    Args:
        pauses: how many.
        problem: what it answers until then; None: its line is full.
    """

    def __init__(self, pauses: int, problem: Problem | None = None) -> None:
        self.application = FakeApplication()
        self.application.error = problem
        self.application.full = problem is None
        self.slept: list[float] = []
        self._pauses = pauses

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) >= self._pauses:
            self.application.full, self.application.error = False, None
        await asyncio.sleep(0)

    def http(self) -> httpx.AsyncClient:
        app = build_app(self.application, max_body_bytes=1 << 20)
        return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server")


def trainers(http, sleep):
    """Each kind's way to one reward of the response `1234`, and how often it tries."""
    openrlhf = OpenRLHF(http, ["http://server/get_reward"], sleep)

    async def first():
        reward, _ = await openrlhf.sample("p: 1234", "p: ", "label")
        return reward

    slime = Slime(http, "http://server/slime", sleep)
    return {
        "openrlhf": (first, 5),
        "slime": (lambda: slime.ask("p: ", "1234", "label"), 10),
        "verl-vllm": (lambda: Verl(http, "http://server", "vllm", sleep).ask("1234"), 16),
        "verl-sglang": (lambda: Verl(http, "http://server", "sglang", sleep).ask("1234"), 16),
    }


KINDS = ("openrlhf", "slime", "verl-vllm", "verl-sglang")
PASSING = {
    "full": None,
    "overloaded": Problem(Code.OVERLOADED, "too much at once"),
    "not ready": Problem(Code.NOT_READY, "it drains"),
    "failed": Problem(Code.COMPUTE_FAILED, "the device failed"),
    "storage": Problem(Code.STORAGE_FAILED, "the disk is full"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trouble", PASSING)
async def test_what_passes_is_asked_again_and_answered(kind, trouble):
    one = Trouble(3, PASSING[trouble])
    async with one.http() as http:
        ask, _ = trainers(http, one.sleep)[kind]
        assert await ask() == 1.0
    assert len(one.slept) == 3


@pytest.mark.parametrize("kind", KINDS)
async def test_what_does_not_pass_ends_in_a_failure_and_never_in_a_number(kind):
    one = Trouble(99, Problem(Code.TEXT_TOO_LONG, "200 tokens, the reward model takes 128"))
    async with one.http() as http:
        ask, tries = trainers(http, one.sleep)[kind]
        with pytest.raises(GaveUpError):
            await ask()
    asked = sum(call[0] == "score" for call in one.application.calls)
    # verl does not repeat what can only fail again; the others try as often as they ever do.
    assert asked == (1 if kind.startswith("verl") else tries)


async def test_openrlhf_shares_queries_out_and_asks_those_that_got_none():
    one = Trouble(99)
    one.application.full = False
    async with one.http() as http:
        urls = [
            "http://server/get_reward",
            "http://server/runs/r/get_reward",
            *["http://server/get_reward"] * 2,
        ]
        several = OpenRLHF(http, urls, one.sleep)
        first, *others = await several.ask(["p: 12"], ["p: "], [None])
        assert first["rewards"] == [0.5]
        assert others == [{"rewards": [], "scores": [], "extra_logs": {}}] * 3
        reward, logs = await several.sample("p: 12", "p: ", None)
    assert reward == 0.5
    assert set(logs) == {"vanilla_reward", "tokens", "truncated"}
    assert one.slept == []


async def test_a_reward_loop_of_one_sample_each_is_many_calls_at_once():
    one = Trouble(99)
    one.application.full = False
    async with one.http() as http:
        verl = Verl(http, "http://server/runs/mine", "vllm", one.sleep)
        rewards = await asyncio.gather(*(verl.ask("x" * n) for n in range(1, 30)))
    assert rewards == [n / 4 for n in range(1, 30)]
    assert {call[1] for call in one.application.calls if call[0] == "score"} == {"mine"}
