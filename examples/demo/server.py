"""The real server as a process of its own, started and stopped by the demo."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 180
STOP_SECONDS = 30


class ServerError(RuntimeError):
    """The server did not start, in its own words."""


@dataclass(frozen=True)
class Running:
    """Where a running server answers."""

    http: str
    grpc: str
    process: subprocess.Popen[bytes]


def free_address() -> str:
    """A loopback address that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextlib.contextmanager
def serving(
    *, model: str, head: Path | None, state: Path, log: Path, http: str | None, grpc: str | None
) -> Generator[Running, None, None]:
    """`r2m serve` for as long as the block lasts.

    Raises:
        ServerError: it ended before it was ready, or took too long.
    """
    for address in (http, grpc):
        if address is not None:
            _require_free(address)
    http, grpc = http or free_address(), grpc or free_address()
    command = [str(Path(sys.executable).with_name("r2m")), "serve", "--model", model]
    command += ["--state", str(state), "--http", http, "--grpc", grpc, "--threads", "1"]
    if head is not None:
        command += ["--head", str(head)]
    with log.open("wb") as sink:
        # A session of its own: Ctrl-C reaches the demo alone, which then stops the server.
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_ready(process, http, log)
        yield Running(f"http://{http}", f"grpc://{grpc}", process)
    finally:
        _stop(process)


def _require_free(address: str) -> None:
    """Whoever answers on a port in use is not the server that this demo starts."""
    host, _, port = address.rpartition(":")
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
    except (OSError, ValueError) as error:
        raise ServerError(f"cannot listen on {address}: {error}") from error


def _wait_ready(process: subprocess.Popen[bytes], http: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"the server ended at its start: {_last_line(log)}")
        with (
            contextlib.suppress(OSError),  # refused, or 503 while it starts
            urllib.request.urlopen(f"http://{http}/readyz", timeout=2),
        ):
            if process.poll() is None:
                return
            continue  # somebody else answered
        time.sleep(0.2)
    raise ServerError(f"the server was not ready within {START_SECONDS} s; its log is {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
