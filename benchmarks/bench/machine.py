"""What a benchmark ran on, and which core runs what."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Generator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "fastapi", "uvicorn", "grpcio", "mosec", "litserve")


def describe() -> dict[str, Any]:
    """Date, commit, machine and versions, as they stand beside every table."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_at_start": round(os.getloadavg()[0], 2),
        "compute_threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
        "server_core": sorted(server_cores()),
        "load_core": sorted(load_cores()),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def server_cores() -> set[int]:
    """The cores that servers (and everything else that computes) run on: one."""
    return set(_server or {min(_all_cores)})


def load_cores() -> set[int]:
    """Those of the load generators: another one; with one core in all, the same."""
    return set(_load or {max(_all_cores)})


def share_all_cores() -> None:
    """Give servers one half of the cores and the load the other: for where a GPU computes."""
    cores = sorted(_all_cores)
    half = max(1, len(cores) // 2)
    _server.update(cores[:half])
    _load.update(cores[half:] or cores)


@contextlib.contextmanager
def on(cores: set[int]) -> Generator[None, None, None]:
    """Run on these cores for a while; what is started meanwhile stays on them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


_all_cores = frozenset(os.sched_getaffinity(0))
_server: set[int] = set()
_load: set[int] = set()


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    commit = git("rev-parse", "--short=10", "HEAD") or "unknown"
    return f"{commit} with changes" if git("status", "--porcelain", "-uno") else commit


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def why_not_writable(folder: Path, flag: str = "--out") -> list[str]:
    """A sentence where nothing can be kept there; nobody should find that out after the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return []
    except OSError as error:
        return [f"{flag} {folder} cannot be written to: {error.strerror}"]
