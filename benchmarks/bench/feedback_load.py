"""The trainer's side of the feedback table: our client, in a process and on a core of its own.

    python -m bench.feedback_load < job.json > outcome.json

Over a stream samples go in as a trainer's rollouts do, so many unanswered at a time; in calls,
each of so many threads scores a group at a time; a step is one call of score with all samples, and
one of align.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench.machine import load_cores, on
from r2m_client import AsyncClient, Client, Group, Sample

Mode = Literal["none", "bfloat16", "int8", "split"]
Way = Literal["stream", "calls", "step"]
DISTINCT = 8
"""Different states; more would only fill memory, since nobody keeps what he has seen of them."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to send.

    Attributes:
        url: grpc://…
        mode: what goes along with a text.
        way: how.
        texts: one sample each.
        tokens, width: of a sample's states.
        in_flight: samples that may be unanswered.
        group: samples of one call.
    """

    url: str
    run: str
    mode: Mode
    way: Way
    texts: Sequence[str]
    tokens: int
    width: int
    in_flight: int = 32
    group: int = 8


@dataclass(slots=True)
class Outcome:
    """Seconds from the first sample sent to the last reward; bytes both ways."""

    seconds: float
    sent: int
    received: int


def missing(mode: Mode) -> str:
    """Why this client cannot do a mode; empty where it can."""
    if mode == "int8":
        try:
            Client("grpc://127.0.0.1:1", wire_dtype=mode).close()  # type: ignore[arg-type]
        except ValueError as error:
            return str(error)
    return ""


def run(job: Job) -> Outcome:
    """Send a job from a process of its own and wait for it."""
    from bench.servers import environment

    with on(load_cores()):
        done = subprocess.run(
            [sys.executable, "-m", "bench.feedback_load"],
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"the trainer's side failed: {done.stderr[-2000:]}")
    return Outcome(**json.loads(done.stdout))


def samples_of(job: Job) -> list[Sample]:
    """The job's samples; states are in the wire's dtype already, as a trainer's are in bf16."""
    import numpy as np

    from r2m.tensors import tensor_value

    states: list[Any] = [None]
    if job.mode != "none":
        draw = np.random.default_rng(0)
        raw = [
            draw.standard_normal((job.tokens, job.width), dtype=np.float32) for _ in range(DISTINCT)
        ]
        states = raw if job.mode == "split" else [tensor_value(h, dtype=job.mode) for h in raw]
    return [
        Sample(str(place), "", text, states[place % len(states)], format="raw")
        for place, text in enumerate(job.texts)
    ]


async def stream(job: Job, samples: Sequence[Sample]) -> Outcome:
    """All samples over one stream."""
    async with AsyncClient(job.url, timeout=600) as client:
        room = asyncio.Semaphore(job.in_flight)
        started = time.perf_counter()
        async with client.score_stream(run=job.run) as scores:

            async def send() -> None:
                for sample in samples:
                    await room.acquire()
                    await scores.send(sample)
                await scores.finish()

            sending = asyncio.create_task(send())
            async for score in scores:
                if score.error is not None:
                    raise score.error
                room.release()
            await sending
        return Outcome(time.perf_counter() - started, client.bytes_sent, client.bytes_received)


def calls(job: Job, samples: Sequence[Sample]) -> Outcome:
    """All samples in calls of one group."""
    groups = [samples[at : at + job.group] for at in range(0, len(samples), job.group)]
    more = _how(job)
    with (
        Client(job.url, timeout=600) as client,
        ThreadPoolExecutor(max(1, job.in_flight // job.group)) as threads,
    ):
        started = time.perf_counter()
        for done in threads.map(lambda group: client.score(group, run=job.run, **more), groups):
            done.raise_for_errors()
        return Outcome(time.perf_counter() - started, client.bytes_sent, client.bytes_received)


def step(job: Job, samples: Sequence[Sample]) -> Outcome:
    """An RL step: all samples scored, then the run aligned on them, by groups."""
    groups = [
        Group(str(at), samples[at : at + job.group]) for at in range(0, len(samples), job.group)
    ]
    with Client(job.url, timeout=600) as client:
        number = client.run(job.run).next_step
        sent, received = client.bytes_sent, client.bytes_received
        started = time.perf_counter()
        scored = client.score(samples, run=job.run, **_how(job)).raise_for_errors()
        context: dict[str, Any] = {"context": scored.context} if job.mode == "split" else {}
        counts = client.align(job.run, step=number, groups=groups, **_how(job), **context).groups
        spent = time.perf_counter() - started
        if counts.used != len(groups):
            raise RuntimeError(f"align used {counts.used} of {len(groups)} groups: {counts}")
        return Outcome(spent, client.bytes_sent - sent, client.bytes_received - received)


def _how(job: Job) -> dict[str, Any]:
    return {"feedback": "split"} if job.mode == "split" else {}


def main() -> None:
    job = Job(**json.load(sys.stdin))
    samples = samples_of(job)
    ways = {"calls": calls, "step": step}
    if job.way == "stream":
        outcome = asyncio.run(stream(job, samples))
    else:
        outcome = ways[job.way](job, samples)
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
