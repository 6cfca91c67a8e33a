"""Which samples make a batch: fair between runs, of like length, within budgets, nobody starves."""

import dataclasses
import random
from collections import Counter

import pytest

from r2m_service.engine.queue import BatchQueue, Budgets

WIDE = Budgets(tokens=10**9, items=10**9, feedback_bytes=10**9)


@dataclasses.dataclass(eq=False)
class Sample:
    name: str
    tokens: int = 1
    flow: str = "a"
    feedback_bytes: int = 0
    gone: bool = False


def queue(*samples, window=256, **budgets):
    one = BatchQueue(dataclasses.replace(WIDE, **budgets), window=window)
    one.add(samples)
    return one


def batches(one):
    while batch := one.take():
        yield [sample.name for sample in batch]


def test_what_fits_goes_together_in_order_of_arrival():
    samples = [Sample(str(n), tokens=n * 7 % 5 + 1) for n in range(9)]
    assert list(batches(queue(*samples))) == [[str(n) for n in range(9)]]


def test_under_backlog_a_batch_has_texts_of_like_length():
    lengths = [10, 500, 11, 490, 12, 480, 13, 470]
    one = queue(*(Sample(str(n), n) for n in lengths), tokens=2000)
    assert list(batches(one)) == [["10", "11", "12", "13"], ["500", "490", "480", "470"]]


def test_without_a_window_the_order_of_arrival_alone_counts():
    lengths = [10, 500, 11, 490, 12, 480, 13, 470]
    one = queue(*(Sample(str(n), n) for n in lengths), tokens=2000, window=1)
    assert list(batches(one)) == [["10", "500", "11", "490"], ["12", "480", "13", "470"]]


@pytest.mark.parametrize("window", [1, 256])
def test_a_giant_goes_alone_and_every_budget_holds(window):
    samples = [Sample("giant", 500), *(Sample(f"s{n}", 10, feedback_bytes=40) for n in range(6))]
    found = list(batches(queue(*samples, window=window, tokens=100)))
    assert found == [["giant"], [f"s{n}" for n in range(6)]]
    found = list(batches(queue(*samples, window=window, tokens=1000, items=4)))
    assert [len(batch) for batch in found[1:]] == [4, 2] or [len(b) for b in found] == [2, 4, 1]
    found = list(batches(queue(*samples[1:], window=window, feedback_bytes=100)))
    assert [len(batch) for batch in found] == [2, 2, 2]


def test_a_long_text_is_not_starved_by_short_ones_that_keep_coming():
    one = queue(*(Sample(f"s{n}", 10) for n in range(5)), Sample("long", 900), tokens=1000)
    taken = 0
    while True:
        taken += 1
        assert taken <= 6  # as many as there were before it, at most
        if any(sample.name == "long" for sample in one.take()):
            break
        one.add(Sample(f"later-{taken}-{n}", 10) for n in range(200))


def test_one_runs_flood_does_not_hold_up_another_run():
    one = queue(*(Sample(f"a{n}", 50) for n in range(5000)), tokens=1000)
    one.take()
    one.add([Sample("b", 700, "b"), Sample("c", 50, "c")])
    first, second, third = one.take(), one.take(), one.take()
    assert first[0].flow == "a"  # it had its turn, and then comes back to the end of the line
    assert any(sample.name == "c" for sample in first)  # of like length: why should it wait?
    assert second[0].name == "b"
    assert third[0].flow == "a"


def test_runs_that_flood_share_alike():
    one = queue(
        *(Sample(f"a{n}", 10, "a") for n in range(3000)),
        *(Sample(f"b{n}", 10, "b") for n in range(1000)),
        *(Sample(f"c{n}", 10, "c") for n in range(1000)),
        tokens=300,
    )
    shares = Counter(sample.flow for _ in range(60) for sample in one.take())
    assert max(shares.values()) - min(shares.values()) <= 60


def test_those_who_left_are_dropped_wherever_they_stand():
    samples = [Sample(str(n), gone=n in (0, 1, 3, 7)) for n in range(8)]
    one = queue(*samples, items=2)
    assert list(batches(one)) == [["2", "4"], ["5", "6"]]
    assert len(one) == 0
    one = queue(Sample("x", gone=True))
    assert one.take() == []
    assert len(one) == 0


@pytest.mark.parametrize("window", [1, 4, 256])
def test_everybody_is_served_once_and_within_the_budgets(window):
    draw = random.Random(window)
    samples = [
        Sample(str(n), draw.randint(1, 120), draw.choice("abc"), draw.randint(0, 50))
        for n in range(700)
    ]
    one = queue(*samples, window=window, tokens=1000, items=20, feedback_bytes=300)
    served = []
    while batch := one.take():
        longest = max(sample.tokens for sample in batch)
        assert len(batch) == 1 or longest * len(batch) <= 1000
        assert len(batch) <= 20
        assert sum(sample.feedback_bytes for sample in batch) <= 300
        served += [sample.name for sample in batch]
    assert sorted(served) == sorted(sample.name for sample in samples)
