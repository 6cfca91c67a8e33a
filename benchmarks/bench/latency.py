"""Latency at shares of capacity, with arrivals that do not wait for the server; and at twice it.

Capacity is what 32 callers in a closed loop get. The open loop then sends at Poisson times drawn
beforehand, and counts a latency from when its call was due, so that queueing shows in full.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.measure import MIB, peak, percentile, reset_peak
from bench.models import save_random_model
from bench.report import Table
from bench.scale import Scale
from bench.servers import Server, ours
from bench.texts import texts_of
from r2m_service.settings import Settings

SHARES = (0.5, 0.8, 0.95)
OVERLOAD = 2.0
QUEUE_FLAGS = {"queue_samples": 64}
"""Settings that bound the queue, and what the overload row sets them to (where they exist)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One rate: what came of it, and the server's peak memory meanwhile."""

    outcome: load.Outcome
    peak: int

    @property
    def refused(self) -> float:
        """Share of calls answered with 429 or 503."""
        refused = sum(self.outcome.statuses.get(status, 0) for status in ("429", "503"))
        return refused / self.outcome.calls

    @property
    def failed(self) -> int:
        """Calls that ended in any other way than with a reward or a refusal."""
        kept = {"200", "429", "503"}
        return sum(n for status, n in self.outcome.statuses.items() if status not in kept)


def table(scale: Scale, say: Callable[[str], None]) -> Table:
    """p50 and p99 by share of capacity; at twice it, what is refused and what memory is taken."""
    made = Table(
        "latency",
        f"Latency under open-loop arrivals (one text of {scale.short_tokens} tokens a call)",
        (
            "share of capacity",
            "calls/s",
            "answered",
            "p50 ms",
            "p99 ms",
            "refused",
            "failed",
            "peak MiB",
            "generator late ms",
        ),
    )
    queue = {k: v for k, v in QUEUE_FLAGS.items() if k in Settings.model_fields}
    flags = [word for key, value in queue.items() for word in (_flag(key), str(value))]
    with tempfile.TemporaryDirectory() as folder:
        model = save_random_model(Path(folder) / "model", scale.shape)
        with ours(model, Path(folder), "--cache-bytes", "0", *flags) as server:
            capacity = _capacity(server, scale, say)
            made.notes.append(
                f"Capacity is {capacity:.3g} calls/s: {scale.headline} callers, closed loop. "
                "The last column is how far the generator itself was behind its plan, at most."
            )
            rows = {
                share: _open(server, share * capacity, scale, say) for share in (*SHARES, OVERLOAD)
            }
    for share, row in rows.items():
        latencies = row.outcome.latencies
        made.rows.append(
            [
                f"{share:.0%}",
                share * capacity,
                row.outcome.answered,
                percentile(latencies, 0.5) * 1e3,
                percentile(latencies, 0.99) * 1e3,
                f"{row.refused:.1%}",
                row.failed,
                row.peak / MIB,
                row.outcome.late * 1e3,
            ]
        )
    if queue:
        made.notes.append(f"The server ran with {' '.join(flags)}.")
    else:
        made.notes.append("This server has no bound on its queue: at twice its capacity it grows.")
    made.keys["overload_refused_share"] = rows[OVERLOAD].refused
    made.keys["overload_memory_ratio"] = rows[OVERLOAD].peak / rows[SHARES[1]].peak
    made.keys["overload_p99_ms"] = percentile(rows[OVERLOAD].outcome.latencies, 0.99) * 1e3
    made.keys["overload_failed"] = rows[OVERLOAD].failed
    return made


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _capacity(server: Server, scale: Scale, say: Callable[[str], None]) -> float:
    """Calls a second in a closed loop, the median of three."""
    bodies = _bodies(server, scale.short_calls, scale, seed=5)
    found: list[float] = []
    for number in range(3):
        say(f"capacity, {number + 1} of 3")
        job = load.Job(server.port, server.path, bodies, callers=scale.headline)
        found.append(len(bodies) / load.run(job).seconds)
    return statistics.median(found)


def _open(server: Server, rate: float, scale: Scale, say: Callable[[str], None]) -> Row:
    say(f"open loop at {rate:.3g} calls/s")
    bodies = _bodies(server, max(8, round(rate * scale.open_seconds)), scale, seed=6)
    reset_peak(server.pid)
    outcome = load.run(load.Job(server.port, server.path, bodies, rate=rate, seed=7))
    if not outcome.latencies:
        raise RuntimeError(f"no call was answered: {outcome.statuses} {outcome.first_failure}")
    return Row(outcome, peak(server.pid))


def _bodies(server: Server, count: int, scale: Scale, *, seed: int) -> list[str]:
    return [server.body([text]) for text in texts_of([scale.short_tokens] * count, seed=seed)]
