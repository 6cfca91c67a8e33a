"""Servers forked from a process that has imported everything: one that is killed is soon back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import httpx

from support.processes import free_port

# Reads a line of JSON for each server, forks, and answers with the child's process id. No thread
# runs in it, so the child is as good as a fresh process: it loads the model and runs `r2m serve`.
NURSERY = """
import ctypes, json, os, signal, sys
import torch
torch.set_num_threads(1)
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast
import r2m_service.bootstrap
from r2m_service.cli import serve
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
print("ready", flush=True)
for line in sys.stdin:
    given = json.loads(line)
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it goes when this process goes
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(given["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(log, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    exec(given["first"])
    serve(given["flags"], prog_name="r2m serve")
"""


class Forked:
    """A server's process, started but not yet ready."""

    def __init__(self, pid, http, grpc, log):
        self.pid, self.http, self.grpc, self.log = pid, http, grpc, log

    @property
    def alive(self):
        return os.path.exists(f"/proc/{self.pid}")

    def wait_ready(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.alive, self.log.read_text()[-3000:]
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.http}/readyz", timeout=5).status_code == 200:
                    return self
            time.sleep(0.02)
        raise AssertionError("not ready")

    def kill(self):
        """SIGKILL, now; returns when the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.wait_gone()

    def wait_gone(self):
        deadline = time.monotonic() + 30
        while self.alive:
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.002)


class Nursery:
    """Starts servers of one model."""

    def __init__(self, model):
        self._model = model
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout.readline() == "ready\n"

    def start(self, state, *flags, first=""):
        """A server.

        Args:
            flags: of `r2m serve`.
            first: Python that runs in the process before it: a fault to inject.
        """
        http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
        places = {"--model": self._model, "--state": state, "--http": http, "--grpc": grpc}
        log = state.with_suffix(".log")
        given = {
            "flags": [*(str(one) for pair in places.items() for one in pair), *flags],
            "first": first,
            "log": str(log),
        }
        self._process.stdin.write(json.dumps(given) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        return Forked(pid, f"http://{http}", f"grpc://{grpc}", log)

    def close(self):
        """End all that is left."""
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@contextlib.contextmanager
def nursery(model):
    """A Nursery that is closed when the block ends."""
    one = Nursery(model)
    try:
        yield one
    finally:
        one.close()
