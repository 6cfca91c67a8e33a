"""What the metrics cost a call: CPU time of what is done for one score of one sample.

python benchmarks/metrics_cost.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from r2m_service.application.metrics_port import NO_METRICS, Batched, Called
from r2m_service.application.tally import MovingPair
from r2m_service.application.timings import Stage
from r2m_service.telemetry.hearing import Hearing
from r2m_service.transports.counting import counted

STAGES: dict[Stage, float] = {"queue": 0.003, "tokenize": 0.002, "backbone": 0.02, "head": 0.001}


def microseconds(function: Callable[[], None], *, times: int = 5000, rounds: int = 7) -> float:
    """The least CPU time of a call, over some rounds."""

    def once() -> float:
        began = time.process_time()
        for _ in range(times):
            function()
        return (time.process_time() - began) / times

    return 1e6 * min(once() for _ in range(rounds))


def around() -> None:
    """What a transport does around a call."""
    with counted(NO_METRICS, "http", "score"):
        pass


def main() -> None:
    """Print each part and the sum."""
    hearing, pair = Hearing(CollectorRegistry()), MovingPair()
    found = {
        "around the call": microseconds(around),
        "counting the call": microseconds(
            lambda: hearing.called(Called("http", "score", "ok", 0.03, STAGES))
        ),
        "counting the batch": microseconds(lambda: hearing.batched(Batched(1, 30, 0, 0.02, 0.001))),
        "moments of the reward": microseconds(lambda: pair.add(1.0, 2.0)),
    }
    for what, spent in found.items():
        print(f"{what:24}{spent:8.1f} µs")
    print(f"{'together':24}{sum(found.values()):8.1f} µs")


if __name__ == "__main__":
    main()
