"""The machine: Python, packages, threads, memory, clock."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from r2m_service.doctor.finding import Finding, Patient, ok, problem, size, warning
from r2m_service.extras import PACKAGE, missing_packages

NEEDED_PYTHON = (3, 11)
SHOWN = ("torch", "transformers", "grpcio", "fastapi", "sqlalchemy")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CONTROL_GROUP, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo")
PLAUSIBLE_YEARS = range(2025, 2100)
CLOCK_SECONDS, CLOCK_SLACK = 0.05, 0.02


def check_python(_patient: Patient) -> Finding:
    """Whether Python is new enough."""
    found = f"Python {platform.python_version()}, {platform.machine()} {sys.platform}"
    if sys.version_info < NEEDED_PYTHON:
        return problem("python", found, "use Python 3.11 or newer")
    return ok("python", found)


def check_packages(_patient: Patient) -> Finding:
    """Whether what the service needs is installed, in versions that fit."""
    mend = f"pip install '{PACKAGE}[service]'"
    try:
        wanted = [Requirement(line) for line in requires(PACKAGE) or []]
        found = f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:
        return problem("packages", f"{PACKAGE} is not installed, only its files are there", mend)
    versions: dict[str, str] = {}
    wrong: list[str] = []
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": "service"}):
            continue
        try:
            versions[one.name] = version(one.name)
        except PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
            continue
        if not one.specifier.contains(versions[one.name], prereleases=True):
            wrong.append(f"{one.name} is {versions[one.name]}, needed is {one.specifier}")
    if wrong:
        return problem("packages", "; ".join(wrong), mend)
    shown = [f"{name} {versions[name]}" for name in SHOWN if name in versions]
    return ok("packages", ", ".join([found, *shown]))


def check_extras(patient: Patient) -> Finding | None:
    """Whether the packages are installed that only some settings need."""
    missing = missing_packages(patient.settings)
    if missing is None:
        return None
    patient.missing = missing.settings
    return problem("extras", missing.found, missing.mend)


def check_threads(patient: Patient) -> Finding | None:
    """Whether the compute threads have processors to run on."""
    if patient.device is None or patient.device.type != "cpu":
        return None
    import torch

    settings, processors = patient.settings, usable_processors()
    threads = settings.threads or (1 if settings.deterministic else torch.get_num_threads())
    found = f"compute threads: {threads}, processors: {processors}"
    if threads > processors:
        return warning(
            "threads", f"{found}: they wait for one another", f"set --threads {processors} or less"
        )
    return ok("threads", found)


def usable_processors() -> int:
    """Processors that this process may use, a container's limit included."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota, _, period = _first_line(CONTROL_GROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        count = min(count, max(1, int(quota) // int(period)))
    return count


def check_memory(patient: Patient) -> Finding | None:
    """Whether the model fits, and what the server may hold beside it."""
    if patient.dtype is None or patient.device is None:
        return None
    free = free_memory()
    if patient.parameters is None:
        return None if free is None else ok("memory", f"{size(free)} free; model size unknown")
    model = patient.parameters * BYTES[patient.dtype]
    takes = f"the model takes {size(model)} as {patient.dtype}"
    smaller = "take a smaller model or a machine with more memory"
    if patient.dtype == "float32":
        smaller = f"set --dtype bfloat16 (other rewards, in their last digits), or {smaller}"
    if patient.device.type == "cuda":
        import torch

        on_device, whole = torch.cuda.mem_get_info(patient.device)
        takes += f" of {size(on_device)} free ({size(whole)} in all) on {patient.device}"
        if model > on_device:
            patient.fits = False
            return problem("memory", takes, smaller)
    if free is None:
        return ok("memory", f"{takes}; how much is free cannot be told on this system")
    if model > free:
        patient.fits = False
        return problem("memory", f"{takes}, {size(free)} are free", smaller)
    settings = patient.settings
    most = settings.inflight_bytes + settings.cache_bytes + settings.head_cache_bytes
    # On a GPU the weights pass through memory and leave it again.
    most += model if patient.device.type == "cpu" else 0
    if most > free:
        return warning(
            "memory",
            f"{takes}; with requests and caches at their limits the server may hold {size(most)}, "
            f"{size(free)} are free",
            "lower --inflight-bytes, --cache-bytes or --head-cache-bytes",
        )
    return ok(
        "memory", f"{takes}, at most {size(most)} with requests and caches; {size(free)} free"
    )


def free_memory(root: Path = CONTROL_GROUP, meminfo: Path = MEMINFO) -> int | None:
    """Bytes that can be had without swapping, a container's limit included; None if unknown."""
    found: list[int] = []
    for line in _text(meminfo).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            found.append(int(rest.split()[0]) * 1024)
    for folder, limit, used in (
        (root, "memory.max", "memory.current"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        most, now = _first_line(folder / limit), _first_line(folder / used)
        if most.isdigit() and now.isdigit():
            # What files were read is counted as used, and given up when memory is needed.
            stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines())
            cached = sum(int(stat.get(name, 0)) for name in ("active_file", "inactive_file"))
            found.append(max(0, int(most) - int(now) + cached))
    return min(found, default=None)


def check_clock(
    patient: Patient,
    wall: Callable[[], float] = time.time,
    steady: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Finding:
    """Whether the clock tells a plausible time and runs as fast as it should."""
    mend = "set the clock, and keep it right with NTP (chrony, systemd-timesyncd)"
    now = datetime.fromtimestamp(wall(), UTC)
    found = f"it is {now:%Y-%m-%d %H:%M} UTC"
    if now.year not in PLAUSIBLE_YEARS:
        return warning("clock", f"{found}, which cannot be", mend)
    latest = patient.survey.latest if patient.survey else None
    if latest is not None and latest > now + timedelta(minutes=5):
        return warning(
            "clock",
            f"{found}, but the registry's latest head was made at {latest:%Y-%m-%d %H:%M}: the "
            "clock went back",
            mend,
        )
    # The smallest of three: between two readings the process may have to wait.
    off = min(abs(_drift(wall, steady, sleep)) for _ in range(3))
    if off > CLOCK_SLACK:
        return warning("clock", f"{found}; it moved {off:.2f} s against the monotonic clock", mend)
    return ok("clock", found)


def _drift(
    wall: Callable[[], float], steady: Callable[[], float], sleep: Callable[[float], None]
) -> float:
    wall_start, steady_start = wall(), steady()
    sleep(CLOCK_SECONDS)
    return (wall() - wall_start) - (steady() - steady_start)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):  # another system
        return ""


def _first_line(path: Path) -> str:
    return _text(path).partition("\n")[0].strip()
