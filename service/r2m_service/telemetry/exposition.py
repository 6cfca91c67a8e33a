"""All metrics of one server, as text for whoever scrapes it."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.process_collector import ProcessCollector

from r2m.errors import Code
from r2m_service.application.contract import ServerOut
from r2m_service.application.metrics_port import CacheUse, EngineUse
from r2m_service.application.tally import Tally
from r2m_service.application.watching import Watched
from r2m_service.telemetry import catalogue as c
from r2m_service.telemetry.families import Families
from r2m_service.telemetry.runs import show_run

WATCHED_CODES = (Code.FEEDBACK_NOT_FINITE.value, Code.REWARD_NOT_FINITE.value)
"""Of samples: an alert waits for the first one."""


class Application(Protocol):
    """What of the use cases is read."""

    @property
    def ready(self) -> bool:
        """Whether work is taken."""
        ...

    def server(self) -> ServerOut:
        """What the server holds."""
        ...

    def waiting(self) -> tuple[int, int]:
        """Samples in line for the device, and how many there may be."""
        ...

    def refused(self) -> int:
        """Calls that found the line full."""
        ...

    def counted(self) -> tuple[Mapping[str, Tally], Mapping[str, int]]:
        """By run, and failed samples by code."""
        ...

    async def watch(self, tallies: Mapping[str, Tally]) -> Watched:
        """Runs as they stand."""
        ...


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit as it stands: `most` is None where there is none."""

    used: int
    most: int | None
    refused: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What both transports share, as it stands."""

    bytes: Bound
    requests: Bound
    buffers_kept: int


class Exposition:
    """Reads and renders. Used from the event loop of its server.

    Args:
        registry: of this server, where `Hearing` counts.
        limits: reads the transports' bounds.
        engine: reads the device's state.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        application: Application,
        *,
        limits: Callable[[], Limits],
        engine: Callable[[], EngineUse],
    ) -> None:
        self._registry = registry
        self._application = application
        self._limits = limits
        self._engine = engine
        self._turn = asyncio.Lock()
        ProcessCollector(registry=registry)

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """All metrics, and their media type.

        Args:
            accept: the header: OpenMetrics for those who ask for it, else Prometheus' text.
        """
        async with self._turn:
            # What belongs to the event loop is read here; the database and the text take a thread.
            tallies, errors = self._application.counted()
            server = self._server(tallies, errors)
            watched = await self._application.watch(tallies)
            return await asyncio.to_thread(self._render, server, watched, accept)

    def _server(self, tallies: Mapping[str, Tally], errors: Mapping[str, int]) -> Families:
        out, application = Families(c.SERVER), self._application
        info, limits = application.server(), self._limits()
        out.set(c.BUILD, 1, info.version, platform.python_version())
        out.set(c.BACKBONE, 1, info.model, info.fingerprint[:12], info.dtype, info.device)
        out.set(c.READY, application.ready)
        samples, most = application.waiting()
        line = Bound(samples, most, application.refused())
        for bound, used, limit, reason in (
            (limits.bytes, c.BYTES_USED, c.BYTES_LIMIT, "inflight_bytes"),
            (limits.requests, c.REQUESTS_USED, c.REQUESTS_LIMIT, "inflight_requests"),
            (line, c.QUEUE_USED, c.QUEUE_LIMIT, "queue_samples"),
        ):
            out.set(used, bound.used)
            out.set(limit, bound.most)
            out.set(c.REFUSED, bound.refused, reason)
        out.set(c.BUFFERS, limits.buffers_kept)
        self._device(out, self._engine())
        failed = sum(one.failed for one in tallies.values())
        out.set(c.SAMPLES, sum(one.samples for one in tallies.values()) - failed, "ok")
        out.set(c.SAMPLES, failed, "failed")
        # From the start at 0, so that the first one is an increase.
        for code, count in {**dict.fromkeys(WATCHED_CODES, 0), **errors}.items():
            out.set(c.SAMPLE_ERRORS, count, code)
        return out

    @staticmethod
    def _device(out: Families, use: EngineUse) -> None:
        out.set(c.DEVICE_ALIVE, use.alive)
        caches: tuple[tuple[str, CacheUse], ...] = (
            ("embeddings", use.embeddings),
            ("heads", use.heads),
        )
        for name, cache in caches:
            out.set(c.CACHE_HITS, cache.hits, name)
            out.set(c.CACHE_MISSES, cache.misses, name)
            out.set(c.CACHE_BYTES, cache.bytes, name)
            out.set(c.CACHE_LIMIT, cache.capacity, name)
        out.set(c.BACKBONE_TOKENS, use.text_tokens, "text")
        out.set(c.BACKBONE_TOKENS, use.padding_tokens, "padding")
        for kind, size in use.memory.items():
            out.set(c.DEVICE_MEMORY, size, kind)

    def _render(self, server: Families, watched: Watched, accept: str) -> tuple[bytes, str]:
        runs = Families(c.RUN)
        server.set(c.REGISTRY, watched.reachable)
        if watched.reachable:
            for state in ("open", "frozen", "archived", "foreign"):
                server.set(c.RUNS, watched.states.get(state, 0), state)
            server.set(c.RUNS_LEFT_OUT, watched.left_out)
        for run in watched.runs:
            show_run(runs, run)
        encode, media = choose_encoder(accept)
        shown = _Shown(self._registry, [*server.found(), *runs.found()])
        return encode(shown), media


class _Shown(CollectorRegistry):
    """What one scrape shows: the registry's own metrics and those that were just read."""

    def __init__(self, registry: CollectorRegistry, families: Sequence[Family]) -> None:
        super().__init__()
        self._from = registry
        self._families = families

    def collect(self) -> Iterator[Family]:
        for family in self._from.collect():
            # Each counter and histogram would have a second series that says when it began.
            family.samples = [one for one in family.samples if not one.name.endswith("_created")]
            yield family
        yield from self._families
