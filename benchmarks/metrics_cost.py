"""What metrics, log and traces cost a call: CPU time of what is done for one score of one sample.

python benchmarks/metrics_cost.py
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from r2m_service.application.metrics_port import NO_METRICS, Batched, Called
from r2m_service.application.tally import MovingPair
from r2m_service.application.timings import Stage, timed
from r2m_service.application.tracing_port import NO_TRACING, Tracing
from r2m_service.logs import configure
from r2m_service.telemetry.hearing import Hearing
from r2m_service.telemetry.tracing import OtlpTracing
from r2m_service.transports.arrival import arrive
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


def around(tracing: Tracing = NO_TRACING) -> None:
    """What a transport does around a call, with the spans of a score where it is traced."""
    arrive({"x-request-id": "4711"}, tracing)
    with counted(NO_METRICS, "http", "score"), timed() as spent:
        now = time.perf_counter()
        for name in ("registry.run", "tokenize", "queue", "backbone", "head"):
            spent.took(name, now, now, batch_samples=1)


def main() -> None:
    """Print each part and the sum."""
    hearing, pair = Hearing(CollectorRegistry()), MovingPair()
    # To a port where nobody listens: what is measured is the call's own share, not the sending.
    traces = OtlpTracing("http://127.0.0.1:9")
    configure("json", "warning", show_content=False, stream=io.StringIO())
    bare = microseconds(around)
    traced = microseconds(lambda: around(traces))
    logging.getLogger("r2m.access").setLevel(logging.INFO)
    logged = microseconds(around)
    logging.getLogger("r2m.access").setLevel(logging.WARNING)
    found = {
        "around the call": bare,
        "its line in the log": logged - bare,
        "counting the call": microseconds(
            lambda: hearing.called(Called("http", "score", "ok", 0.03, STAGES))
        ),
        "counting the batch": microseconds(lambda: hearing.batched(Batched(1, 30, 0, 0.02, 0.001))),
        "moments of the reward": microseconds(lambda: pair.add(1.0, 2.0)),
    }
    for what, spent in found.items():
        print(f"{what:24}{spent:8.1f} µs")
    print(f"{'together':24}{sum(found.values()):8.1f} µs")
    print(f"{'tracing, where it is on':24}{traced - bare:8.1f} µs")
    traces.close(1.0)


if __name__ == "__main__":
    main()
