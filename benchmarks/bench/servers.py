"""Server processes: started on the servers' core, asked the same thing in each one's own form."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import ROOT, on, server_cores

START_SECONDS = 240
STOP_SECONDS = 30


class ServerError(RuntimeError):
    """A server that did not start, in its own words."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        pid: of the process that was started; peers have children of their own.
        path: of the scoring route.
        body: the JSON of a call with these texts.
        rewards: the rewards in an answer.
        grpc: our own server's other address.
    """

    name: str
    pid: int
    port: int
    path: str
    body: Callable[[Sequence[str]], str]
    rewards: Callable[[Any], list[float]]
    grpc: str = ""

    @property
    def http(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, texts: Sequence[str]) -> list[float]:
        """The rewards of one call, outside any measurement."""
        request = urllib.request.Request(
            self.http + self.path,
            data=self.body(texts).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return self.rewards(json.load(answer))


def our_body(texts: Sequence[str]) -> str:
    """A call of our own REST interface."""
    samples = [
        {"id": str(place), "prompt": "", "response": text, "format": "raw"}
        for place, text in enumerate(texts)
    ]
    return json.dumps({"samples": samples})


def our_rewards(answer: Any) -> list[float]:
    """The rewards of our own answer; a sample's error is no reward."""
    for score in answer["scores"]:
        if score.get("error"):
            raise ServerError(f"a sample was not scored: {score['error']}")
    return [score.get("reward", score.get("vanilla_reward")) for score in answer["scores"]]


def peer_body(texts: Sequence[str]) -> str:
    """A call of a peer."""
    return json.dumps({"texts": list(texts)})


@contextlib.contextmanager
def ours(model: Path, workspace: Path, *flags: str) -> Generator[Server, None, None]:
    """`r2m serve` with one compute thread, until the block is left.

    Args:
        model: folder.
        workspace: where its state and its log go.
        flags: more of them.
    """
    port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-m", "r2m_client.cli", "serve", "--model", str(model)]
    command += ["--state", str(workspace / f"state-{port}"), "--threads", "1"]
    command += ["--http", f"127.0.0.1:{port}", "--grpc", f"127.0.0.1:{grpc_port}", *flags]
    with _process(command, port, "/readyz", workspace) as pid:
        yield Server(
            "r2m",
            pid,
            port,
            "/v1/score",
            our_body,
            our_rewards,
            grpc=f"grpc://127.0.0.1:{grpc_port}",
        )


PEERS = {
    "plain fastapi": ("plain", "/score", "/health"),
    "mosec": ("mosec_server", "/inference", "/"),
    "litserve": ("litserve_server", "/predict", "/health"),
}


@contextlib.contextmanager
def peer(name: str, model: Path, workspace: Path) -> Generator[Server, None, None]:
    """One of `PEERS`, until the block is left."""
    module, path, ready = PEERS[name]
    port = free_port()
    command = [sys.executable, "-m", f"bench.peers.{module}", str(model), str(port)]
    with _process(command, port, ready, workspace) as pid:
        yield Server(name, pid, port, path, peer_body, lambda answer: list(answer["rewards"]))


@contextlib.contextmanager
def bare_model(
    model: Path, *where: str
) -> Generator[Callable[[Sequence[str], int], float], None, None]:
    """The limit, in a process of its own: (texts, window) to seconds.

    Args:
        model: folder.
        where: dtype and device; default: float32 on the CPU.
    """
    with _worker("limit", model, *where) as ask:

        def seconds(texts: Sequence[str], window: int) -> float:
            return float(ask({"texts": list(texts), "window": window})["seconds"])

        yield seconds


@contextlib.contextmanager
def full_update(
    model: Path,
) -> Generator[Callable[[Sequence[Sequence[str]]], tuple[float, int]], None, None]:
    """The reward model in training, in a process of its own: groups to seconds and peak bytes."""
    with _worker("full_update", model) as ask:

        def step(groups: Sequence[Sequence[str]]) -> tuple[float, int]:
            found = ask({"groups": [list(texts) for texts in groups]})
            return float(found["seconds"]), int(found["bytes"])

        yield step


@contextlib.contextmanager
def _worker(
    module: str, model: Path, *arguments: str
) -> Generator[Callable[[Any], Any], None, None]:
    """A process on the servers' core that answers a line of JSON with another."""
    with on(server_cores()):
        process = subprocess.Popen(
            [sys.executable, "-m", f"bench.peers.{module}", str(model), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
    assert process.stdin is not None
    assert process.stdout is not None
    to, back = process.stdin, process.stdout

    def read() -> Any:
        line = back.readline()
        if not line:
            raise ServerError(f"the process of {module} ended")
        return json.loads(line)

    def ask(job: Any) -> Any:
        to.write(json.dumps(job) + "\n")
        to.flush()
        return read()

    try:
        read()  # it is ready
        yield ask
    finally:
        to.close()  # which ends it
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        back.close()


def environment() -> dict[str, str]:
    """What every child runs with: one compute thread, offline, this package importable."""
    path = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
        "PYTHONPATH": path.rstrip(os.pathsep),
    }


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _process(
    command: Sequence[str], port: int, ready: str, workspace: Path
) -> Generator[int, None, None]:
    log = workspace / f"server-{port}.log"
    with log.open("wb") as sink, on(server_cores()):
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )
    try:
        _wait_ready(process, f"http://127.0.0.1:{port}{ready}", log)
        yield process.pid
    finally:
        _stop(process)


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with (
            contextlib.suppress(OSError),  # refused, or an error status while it starts
            urllib.request.urlopen(url, timeout=2),
        ):
            return
        time.sleep(0.1)
    raise ServerError(f"{process.args!r} is not ready: {log.read_text(errors='replace')[-2000:]}")


def _stop(process: subprocess.Popen[Any]) -> None:
    """Ask it to end, then its whole session: peers have workers of their own."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    # Also where it has ended: LitServe's workers outlive their parent, and poll.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
