"""Medians of interleaved rounds; CPU seconds and memory of a process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
LOG_EVERY = 10.0
"""Seconds between two lines of progress, where the output is no terminal."""


@dataclass(slots=True)
class Rounds:
    """Measurements by arm, one of each arm a round."""

    values: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def median(self, arm: str) -> float:
        """The arm's median."""
        return statistics.median(self.values[arm])

    def ratio(self, above: str, below: str) -> float:
        """Median of the ratios within each round: what drifts between rounds cancels."""
        pairs = zip(self.values[above], self.values[below], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def spread(self, one: str, other: str) -> float:
        """The largest relative difference of two arms that are the same thing, over the rounds."""
        pairs = zip(self.values[one], self.values[other], strict=True)
        return max(abs(a / b - 1.0) for a, b in pairs)


def interleaved(
    arms: Mapping[str, Callable[[], float]], *, rounds: int, say: Callable[[str], None]
) -> Rounds:
    """Measure every arm once a round, each round starting with another arm.

    Args:
        arms: each does its work and returns what was measured.
        say: hears which arm is at work.
    """
    found = Rounds({name: [] for name in arms})
    names = list(arms)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            say(f"round {number + 1} of {rounds}: {name}")
            found.values[name].append(arms[name]())
    return found


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one run."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -(-int(share * len(ordered) * 1e6) // 10**6) - 1))]


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes resident now."""
    return _status(pid, "VmRSS")


def peak(pid: int) -> int:
    """The most bytes resident since `reset_peak`."""
    return _status(pid, "VmHWM")


def reset_peak(pid: int) -> None:
    """Let `peak` start from now (Linux; the process is the caller's own)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that this process grows by, at most, while it does some work."""
    pid = os.getpid()
    with contextlib.suppress(OSError, AttributeError):
        # What was freed and not given back would be used again, and not be seen to grow.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_peak(pid)
    before = resident(pid)
    work()
    return max(0, peak(pid) - before)


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/status has no {name}")


def progress(table: str) -> Callable[[str], None]:
    """A line on the terminal that says what is at work; rewritten, or in a log now and then."""
    started, last = time.monotonic(), -LOG_EVERY

    def say(what: str) -> None:
        nonlocal last
        now = time.monotonic() - started
        line = f"[{table} {now:4.0f} s] {what}"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{line[:110]}")
        elif now - last >= LOG_EVERY:
            last = now
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    return say
