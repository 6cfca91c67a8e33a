"""The device thread: batches, turns between them, failures that stay where they happened."""

import asyncio
import threading
import time

import pytest

from r2m.errors import Code, Problem
from r2m_service.engine.cache import BytesCache
from r2m_service.engine.queue import Budgets
from r2m_service.engine.worker import DeviceWorker, Job


class Recorder:
    """A batch function that can be held up, so that work queues behind it."""

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, batch):
        self.gate.wait(5)
        self.batches.append(list(batch))
        if "boom" in batch:
            raise RuntimeError("no memory")
        if "exit" in batch:
            raise SystemExit
        return [f"{one}!" for one in batch]


class Worker(DeviceWorker):
    """Takes (work, tokens) pairs."""

    async def submit(self, work, *, flow="a"):
        return await super().submit([Job(one, tokens) for one, tokens in work], flow=flow)


def with_worker(scenario, *, budget=100, most=8, **more):
    recorder = Recorder()
    worker = Worker(recorder, budgets=Budgets(budget, most, 1000), **more)
    worker.start()
    try:
        asyncio.run(scenario(worker, recorder))
    finally:
        recorder.gate.set()
        worker.stop()


async def queued(worker, count):
    async with asyncio.timeout(5):
        while len(worker._queue) < count:
            await asyncio.sleep(0.001)


def test_results_come_in_order_and_waiting_work_forms_a_batch():
    async def scenario(worker, recorder):
        recorder.gate.clear()
        first = asyncio.create_task(worker.submit([("a", 1)]))
        await asyncio.sleep(0.05)  # the thread has it now
        rest = [asyncio.create_task(worker.submit([(f"{n}", 1)])) for n in range(5)]
        await queued(worker, 5)
        recorder.gate.set()
        assert await first == ["a!"]
        assert [await task for task in rest] == [[f"{n}!"] for n in range(5)]
        assert recorder.batches == [["a"], ["0", "1", "2", "3", "4"]]

    with_worker(scenario)


def test_budget_counts_padding_and_a_giant_goes_alone():
    async def scenario(worker, recorder):
        work = [("a", 10), ("b", 40), ("c", 40), ("giant", 500), ("d", 10)]
        assert await worker.submit(work) == ["a!", "b!", "c!", "giant!", "d!"]
        assert recorder.batches == [["a", "d"], ["b", "c"], ["giant"]]

    with_worker(scenario, budget=100)


def test_an_exception_fails_its_own_batch_only():
    async def scenario(worker, recorder):
        first, boom, last = await worker.submit([("a", 60), ("boom", 60), ("c", 60)])
        assert (first, last) == ("a!", "c!")
        assert isinstance(boom, Problem)
        assert boom.code == Code.COMPUTE_FAILED
        assert "RuntimeError" in boom.message
        assert await worker.submit([("d", 1)]) == ["d!"]
        with pytest.raises(Problem, match="ValueError"):
            await worker.turn(lambda: (_ for _ in ()).throw(ValueError("broken")))
        assert await worker.turn(lambda: 7) == 7

    with_worker(scenario, budget=100)


def test_scores_go_between_the_turns_of_an_align():
    order = []

    async def scenario(worker, recorder):
        async def align():
            for n in range(4):
                await worker.turn(lambda n=n: (time.sleep(0.05), order.append(f"turn {n}")))

        aligning = asyncio.create_task(align())
        while not order:
            await asyncio.sleep(0.001)
        await worker.submit([("a", 1)])
        order.append("score")
        await aligning

    with_worker(scenario)
    assert order.index("score") <= 2, order  # waited for the turn at hand, not for all four
    assert order[-1] == "turn 3"


def test_turns_are_not_starved_by_scores():
    async def scenario(worker, recorder):
        async def flood():
            while True:
                await worker.submit([("a", 1)])

        floods = [asyncio.create_task(flood()) for _ in range(4)]
        for n in range(20):
            assert await asyncio.wait_for(worker.turn(lambda n=n: n), 5) == n
        for task in floods:
            task.cancel()

    with_worker(scenario)


def test_work_whose_caller_has_gone_is_dropped():
    async def scenario(worker, recorder):
        recorder.gate.clear()
        first = asyncio.create_task(worker.submit([("a", 1)]))
        await asyncio.sleep(0.01)
        gone = asyncio.create_task(worker.submit([("gone", 1)]))
        await queued(worker, 1)
        gone.cancel()
        await asyncio.sleep(0.01)
        stays = asyncio.create_task(worker.submit([("stays", 1)]))
        await asyncio.sleep(0.01)
        recorder.gate.set()
        await first
        await stays
        assert recorder.batches == [["a"], ["stays"]]

    with_worker(scenario)


def test_a_stopped_worker_says_not_ready():
    async def scenario(worker, recorder):
        recorder.gate.clear()
        first = asyncio.create_task(worker.submit([("a", 1)]))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(worker.submit([("b", 1)]))
        await queued(worker, 1)
        stopping = asyncio.create_task(asyncio.to_thread(worker.stop))
        await asyncio.sleep(0.01)
        recorder.gate.set()
        await stopping
        assert await first == ["a!"]
        (answer,) = await waiting
        assert isinstance(answer, Problem)
        assert answer.code == Code.NOT_READY
        assert not worker.alive
        with pytest.raises(Problem) as caught:
            await worker.submit([("c", 1)])
        assert caught.value.code == Code.NOT_READY

    with_worker(scenario)


@pytest.mark.parametrize("how", ["exit", "fatal"])
def test_a_lost_device_tells_all_its_callers_and_takes_no_more(how):
    async def scenario(worker, recorder):
        recorder.gate.clear()
        at_hand = asyncio.create_task(worker.submit([("exit" if how == "exit" else "boom", 1)]))
        await asyncio.sleep(0.01)
        behind = asyncio.create_task(worker.submit([("b", 1)], flow="b"))
        turn = asyncio.create_task(worker.turn(lambda: 7))
        await queued(worker, 1)
        await asyncio.sleep(0.01)
        recorder.gate.set()
        for found in (*await at_hand, *await behind):
            assert isinstance(found, Problem)
            assert found.code is Code.COMPUTE_FAILED
            assert found.row.retryable
        with pytest.raises(Problem) as caught:
            await turn
        assert caught.value.code is Code.COMPUTE_FAILED
        assert not worker.alive
        with pytest.raises(Problem) as caught:
            await worker.submit([("c", 1)])
        assert caught.value.row.retryable

    with_worker(scenario, fatal=lambda error: True)


def test_cache_is_bounded_in_bytes_and_drops_the_oldest():
    cache = BytesCache(100)
    for key in "abc":
        cache.put(key, key.upper(), 40)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (None, "B", "C")
    cache.get("b")
    cache.put("d", "D", 40)
    assert (cache.get("b"), cache.get("c"), cache.bytes) == ("B", None, 80)
    cache.put("b", "B2", 10)
    assert (cache.get("b"), cache.bytes) == ("B2", 50)
    cache.put("huge", "H", 101)
    assert cache.get("huge") is None
    assert (cache.hits, cache.misses) == (5, 3)
