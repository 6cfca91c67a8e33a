"""Whether a server's memory stays flat: minutes of RL steps in every mode, its size after each.

    PYTHONPATH=benchmarks python benchmarks/soak.py --minutes 20

Each step makes new texts, scores them over a stream, in calls and split, aligns, and every tenth
rolls back. Fails where the second half of the run grew by more than `--most` MiB: caches that fill
and heads that are kept grow at first, what leaks grows on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import MIB, progress, resident
from bench.models import save_random_model
from bench.runs import ANY_CANDIDATE, groups_of
from bench.scale import FULL
from bench.servers import Server, ours
from r2m_client import Client

WIDTH = 576
FLAGS = ("--cache-bytes", str(16 << 20), "--head-cache-bytes", str(32 << 20))


def main() -> int:
    """1 where memory grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--most", type=float, default=8.0, help="MiB in the second half")
    given = parser.parse_args()
    say = progress("soak")
    with tempfile.TemporaryDirectory() as folder:
        model = save_random_model(Path(folder) / "model", FULL.shape)
        with ours(model, Path(folder), *FLAGS) as server:
            seen = soak(server, given.minutes * 60, say)
    half = [size for _, size in seen[len(seen) // 2 :]]
    quarter = max(1, len(half) // 4)
    grown = statistics.median(half[-quarter:]) - statistics.median(half[:quarter])
    for minutes, size in seen[:: max(1, len(seen) // 20)]:
        print(f"{minutes:6.1f} min {size:8.1f} MiB")
    print(f"{len(seen)} steps; the second half grew by {grown:.1f} MiB")
    return int(grown > given.most)


def soak(server: Server, seconds: float, say: Callable[[str], None]) -> list[tuple[float, float]]:
    """Minutes and resident MiB after every step."""
    seen: list[tuple[float, float]] = []
    began = time.monotonic()
    with Client(server.grpc, timeout=300) as grpc, Client(server.http, timeout=300) as http:
        for run in ("streamed", "split"):
            grpc.create_run(
                run, policy_hidden_size=WIDTH, method={"width": 64, "gate": ANY_CANDIDATE}
            )
        steps = {"streamed": 1, "split": 1}
        number = 0
        while time.monotonic() - began < seconds:
            number += 1
            groups = groups_of(count=2, size=4, tokens=24, states=256, width=WIDTH, seed=number)
            samples = [one for group in groups for one in group.samples]
            with grpc.score_stream(run="streamed") as stream:
                for sample in samples:
                    stream.send(sample)
                stream.finish()
                assert all(score.error is None for score in stream)
            client = (grpc, http)[number % 2]
            client.score(samples, run="streamed").raise_for_errors()
            scored = client.score(samples, run="split", feedback="split").raise_for_errors()
            client.align("streamed", step=steps["streamed"], groups=groups)
            client.align(
                "split", step=steps["split"], groups=groups, feedback="split",
                context=scored.context,
            )  # fmt: skip
            for run in steps:
                steps[run] += 1
                if number % 10 == 0:
                    client.rollback(run, to_step=steps[run] - 3, reason="soak")
                    steps[run] = client.run(run).next_step
            seen.append(((time.monotonic() - began) / 60, resident(server.pid) / MIB))
            say(f"step {number}, {seen[-1][1]:.0f} MiB")
    return seen


if __name__ == "__main__":
    sys.exit(main())
