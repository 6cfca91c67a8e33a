"""`r2m serve` as a process of its own, to be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

R2M = [sys.executable, "-m", "r2m_client.cli"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A server, started but not yet ready.

    Args:
        first: Python that runs in the process before the server: a fault to inject.
    """

    def __init__(self, model, state, *flags, first=None):
        self.http = f"http://127.0.0.1:{free_port()}"
        self.grpc = f"grpc://127.0.0.1:{free_port()}"
        begin = [*R2M, "serve"]
        if first is not None:
            start = "from r2m_service.cli import serve; serve(prog_name='r2m serve')"
            begin = [sys.executable, "-c", f"{first}\n{start}"]
        self.process = subprocess.Popen(
            [*begin, "--model", model, "--state", state, "--threads", "1",
             "--http", self.http.split("//")[1], "--grpc", self.grpc.split("//")[1], *flags],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def wait_ready(self):
        # Long: it loads torch and the model, maybe on a machine that fuzzes on every core.
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.stdout.read()
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{self.http}/readyz", timeout=1),
            ):
                return self
            time.sleep(0.05)
        raise AssertionError("not ready")

    def end(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            os.kill(self.process.pid, how)
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output


@contextlib.contextmanager
def serving(model, state, *flags, first=None):
    """A process that is ready, killed when the block ends."""
    one = Process(model, state, *flags, first=first)
    try:
        yield one.wait_ready()
    finally:
        one.end(signal.SIGKILL)
