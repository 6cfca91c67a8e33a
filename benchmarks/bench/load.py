"""The load generator: HTTP/1.1 over kept connections, in a process and on a core of its own.

Nothing but the standard library, so that it costs a fraction of what it measures. Closed loop: so
many callers, each sends its next call when it has its answer. Open loop: calls are due at times
drawn beforehand (Poisson), whatever the server does, and a latency counts from when its call was
due: a call that had to wait for the one before it has waited.

    python -m bench.load < job.json > outcome.json
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.machine import load_cores, on

OPEN_CONNECTIONS = 2000


@dataclass(frozen=True, slots=True)
class Job:
    """What to send.

    Attributes:
        bodies: one call each, sent in order.
        callers: of the closed loop.
        rate: calls a second of the open loop; 0: closed.
        seed: of the arrival times.
    """

    port: int
    path: str
    bodies: Sequence[str]
    callers: int = 1
    rate: float = 0.0
    seed: int = 0


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes:
        seconds: from the first call due to the last answer.
        latencies: seconds of each call answered with 200, in order of completion.
        starts: when these were due, seconds from the start.
        statuses: how many answers of each status; "broken": no answer.
        first_failure: the text of the first answer that is not 200.
        late: the most seconds that the generator itself was behind its plan.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list[float])
    starts: list[float] = field(default_factory=list[float])
    statuses: dict[str, int] = field(default_factory=dict[str, int])
    first_failure: str = ""
    late: float = 0.0

    @property
    def answered(self) -> int:
        """Calls answered with 200."""
        return self.statuses.get("200", 0)

    @property
    def calls(self) -> int:
        """All calls."""
        return sum(self.statuses.values())


def run(job: Job) -> Outcome:
    """Send a job from a process of its own and wait for it."""
    from bench.servers import environment  # which imports much; the child does without

    with on(load_cores()):
        done = subprocess.run(
            [sys.executable, "-m", "bench.load"],
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr[-2000:]}")
    return Outcome(**json.loads(done.stdout))


class _Generator:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._requests = [_request(job, body) for body in job.bodies]
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._statuses: Counter[str] = Counter()
        self._outcome = Outcome()
        self._started = 0.0

    async def go(self) -> Outcome:
        outcome = self._outcome
        self._started = time.perf_counter()
        await (self._open() if self._job.rate else self._closed())
        outcome.seconds = time.perf_counter() - self._started
        outcome.statuses = dict(self._statuses)
        for _, writer in self._free:
            writer.close()
        return outcome

    async def _closed(self) -> None:
        waiting = iter(self._requests)

        async def caller() -> None:
            for request in waiting:  # shared: whoever is free takes the next
                await self._call(request, time.perf_counter())

        await asyncio.gather(*(caller() for _ in range(self._job.callers)))

    async def _open(self) -> None:
        draw = random.Random(self._job.seed)
        due, tasks = self._started, list[asyncio.Task[None]]()
        gate = asyncio.Semaphore(OPEN_CONNECTIONS)

        async def one(request: bytes, due: float) -> None:
            async with gate:
                await self._call(request, due)

        for request in self._requests:
            due += draw.expovariate(self._job.rate)
            pause = due - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            self._outcome.late = max(self._outcome.late, time.perf_counter() - due)
            tasks.append(asyncio.create_task(one(request, due)))
        await asyncio.gather(*tasks)

    async def _call(self, request: bytes, due: float) -> None:
        try:
            status, body = await self._exchange(request)
        except (OSError, EOFError, ValueError) as error:
            status, body = "broken", repr(error).encode()
        self._statuses[status] += 1
        if status == "200":
            self._outcome.latencies.append(time.perf_counter() - due)
            self._outcome.starts.append(due - self._started)
        elif not self._outcome.first_failure:
            self._outcome.first_failure = f"{status}: {body[:300].decode(errors='replace')}"

    async def _exchange(self, request: bytes) -> tuple[str, bytes]:
        if self._free:
            reader, writer = self._free.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._job.port)
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        if b"connection: close" in head:
            writer.close()
        else:
            self._free.append((reader, writer))
        return head.split(b" ", 2)[1].decode(), body


def _request(job: Job, body: str) -> bytes:
    data = body.encode()
    head = (
        f"POST {job.path} HTTP/1.1\r\nHost: 127.0.0.1:{job.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def main() -> None:
    fields: dict[str, Any] = json.load(sys.stdin)
    outcome = asyncio.run(_Generator(Job(**fields)).go())
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
