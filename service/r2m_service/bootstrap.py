"""Builds a server from its settings and runs it: the one place that knows every part."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from prometheus_client import CollectorRegistry

from r2m.errors import Problem
from r2m_service.access.opening import Access
from r2m_service.application.app import Application
from r2m_service.application.contract import SampleIn, VanillaRequest
from r2m_service.application.marking import KeepLimits
from r2m_service.application.retention import Retention
from r2m_service.application.tracing_port import NO_TRACING, Tracing
from r2m_service.engine.states import pinned
from r2m_service.engine.torch_engine import EngineLimits, TorchEngine
from r2m_service.listeners import HttpServer, ListenError, add_grpc_port, bind, shown
from r2m_service.modeling.backbone import Backbone
from r2m_service.modeling.loading import ModelRefusedError, load_backbone
from r2m_service.registry.blobs import BlobStore
from r2m_service.registry.lock import hold
from r2m_service.registry.sql import SqlRegistry
from r2m_service.registry.sweep import sweep
from r2m_service.settings import Settings
from r2m_service.telemetry.exposition import Bound, Exposition, Limits
from r2m_service.telemetry.hearing import Hearing
from r2m_service.transports.access import Gate
from r2m_service.transports.buffers import BufferPool, aligned
from r2m_service.transports.compat.queries import Queries
from r2m_service.transports.grpc.health import Health
from r2m_service.transports.grpc.server import build_grpc
from r2m_service.transports.http.app import build_app
from r2m_service.transports.http.front import Front
from r2m_service.transports.http.ops import build_ops
from r2m_service.transports.limits import ByteBudget, RequestLimit

if TYPE_CHECKING:
    from r2m_service.journal.writer import ArrowJournal
    from r2m_service.telemetry.tracing import OtlpTracing

logger = logging.getLogger("r2m")


MAX_GRPC_CALLS = 1024
"""Calls and streams at once. Those whose bytes are not counted yet take LOOKAHEAD_BYTES all the
same."""

HEALTH_SECONDS = 0.5
"""How often the health service is told whether the server takes calls."""


FLUSH_SECONDS = 5.0
"""How long the last spans may take to their collector, at the end."""


class StartError(RuntimeError):
    """Why the server cannot start, in one line that names the way out."""


@dataclass(frozen=True, slots=True)
class Doors:
    """Where calls come in.

    Attributes:
        front: of HTTP.
        ops_front: of the address for operators' tools.
        grpc_address: HOST:PORT.
        place: all of it, for people.
    """

    access: Access
    front: Front
    ops_front: Front
    grpc_address: str
    place: str


@dataclass
class Parts:
    """A server's parts, wired but not yet listening."""

    application: Application
    engine: TorchEngine
    registry: SqlRegistry
    retention: Retention
    unlock: Callable[[], None]
    collected: CollectorRegistry
    metrics: Hearing
    queries: Queries
    journal: ArrowJournal | None = None
    traces: OtlpTracing | None = None
    draining: bool = False

    @property
    def tracing(self) -> Tracing:
        """What makes a span of each call."""
        return self.traces or NO_TRACING

    def exposition(
        self, budget: ByteBudget, requests: RequestLimit, buffers: BufferPool
    ) -> Exposition:
        """What /metrics answers, with the bounds that the transports share."""

        def limits() -> Limits:
            return Limits(
                bytes=Bound(budget.used, budget.total, budget.refused),
                requests=Bound(requests.used, requests.most, requests.refused),
                buffers_kept=buffers.kept,
            )

        return Exposition(self.collected, self.application, limits=limits, engine=self.engine.use)

    def close(self) -> None:
        """Stop the device thread and let go of the database."""
        self.engine.stop()
        self.retention.close()
        self.registry.close()
        if self.journal is not None:
            self.journal.close()
        if self.traces is not None:
            self.traces.close(FLUSH_SECONDS)
        self.unlock()


def build(settings: Settings, *, backbone: Backbone | None = None) -> Parts:
    """Load the model, open the registry, wire everything.

    Args:
        backbone: one that is loaded already (tests share it).

    Raises:
        StartError: model, folder or database that cannot be used.
    """
    if settings.deterministic:
        # cuBLAS is deterministic only with a workspace of its own, set before CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if settings.threads is not None or settings.deterministic:
        # The number of threads decides how sums are split, hence their last bits.
        torch.set_num_threads(settings.threads or 1)
    with contextlib.ExitStack() as undo:
        # What fails fast comes before the model, which takes minutes to load.
        registry, unlock = _open_registry(settings)
        undo.callback(unlock)
        undo.callback(registry.close)
        blobs = _open_blobs(settings)
        journal = _open_journal(settings)
        try:
            loaded = backbone or _load(settings)
        except (ModelRefusedError, Problem, OSError, ValueError) as error:
            raise StartError(str(error)) from error
        traces = _open_tracing(settings, loaded)
        undo.pop_all()
    retention = Retention(registry, blobs, settings.keep)
    _tidy(registry, blobs, retention, fingerprint=loaded.fingerprint, alone=settings.embedded)
    # Of this server's own: a process may hold several, as tests do.
    collected = CollectorRegistry()
    metrics = Hearing(collected)
    engine = TorchEngine(
        loaded,
        limits=EngineLimits(
            token_budget=settings.token_budget,
            batch_items=settings.batch_items,
            batch_bytes=settings.batch_bytes,
            cache_bytes=settings.cache_bytes,
            head_cache_bytes=settings.head_cache_bytes,
        ),
        deterministic=settings.deterministic,
        trace=settings.journal is not None,
        metrics=metrics,
    )
    engine.start()

    def ready() -> bool:
        return engine.alive and not parts.draining

    application = Application(
        registry,
        registry,
        blobs,
        engine,
        version=version("r2m-serve"),
        ready=ready,
        max_head_bytes=settings.max_head_bytes,
        queue_samples=settings.queue_samples,
        keep=KeepLimits(settings.label_samples, settings.label_bytes),
        journal=journal,
        committed=retention.soon,
        reply_seconds=settings.reply_seconds,
        watched_runs=settings.metrics_runs,
        texts=settings.texts,
    )
    tokenizer = loaded.text.tokenizer
    queries = Queries(
        settings.get_reward_text,
        eos=tokenizer.eos_token or "",
        pad=tokenizer.pad_token or "",
        encoder=loaded.pooled,
    )
    parts = Parts(
        application,
        engine,
        registry,
        retention,
        unlock,
        collected,
        metrics,
        queries,
        journal,
        traces,
    )
    return parts


def _open_journal(settings: Settings) -> ArrowJournal | None:
    if settings.journal is None:
        return None
    # pyarrow is an extra (`extras`).
    from r2m_service.journal.writer import ArrowJournal

    try:
        return ArrowJournal(settings.journal, full=settings.journal_full)
    except Problem as problem:
        raise StartError(f"{problem.message} (--journal)") from problem


def _open_tracing(settings: Settings, backbone: Backbone) -> OtlpTracing | None:
    if settings.otlp_endpoint is None:
        return None
    # OpenTelemetry is an extra (`extras`).
    from r2m_service.telemetry.tracing import OtlpTracing

    return OtlpTracing(
        settings.otlp_endpoint, share=settings.otlp_share, fingerprint=backbone.fingerprint
    )


def _open_registry(settings: Settings) -> tuple[SqlRegistry, Callable[[], None]]:
    """The registry, and how to give back its lock."""
    where = "--registry" if settings.registry else f"--state {settings.state}"
    try:
        unlock = hold(settings.registry_location)
        try:
            return SqlRegistry(settings.registry_location), unlock
        except BaseException:
            unlock()
            raise
    except Problem as error:
        raise StartError(f"{error.message} ({where})") from error


def _open_blobs(settings: Settings) -> BlobStore:
    """The heads' files; an object store is tried with one file: opening it sends nothing."""
    try:
        blobs = BlobStore(settings.blobs_url)
        if blobs.remote:
            blobs.try_out()
    except Problem as problem:
        where = "--blobs" if settings.blobs else f"--state {settings.state}"
        raise StartError(f"{problem.message} ({where})") from problem
    return blobs


def _tidy(
    registry: SqlRegistry, blobs: BlobStore, retention: Retention, *, fingerprint: str, alone: bool
) -> None:
    """Clear what a crash left, and apply the retention rule, which may have other numbers now."""
    try:
        gone = sweep(registry, blobs, alone=alone)
        if gone:
            size = sum(gone.values())
            logger.info("cleared %d files (%d bytes) that a crash had left", len(gone), size)
        for state in registry.run_states():
            if state.run.fingerprint == fingerprint:
                retention.soon(state.run.name)
    except Problem as problem:
        # What is left over costs room, and nothing else.
        logger.warning("what a crash may have left was not cleared: %s", problem.message)


def _load(settings: Settings) -> Backbone:
    backbone = load_backbone(
        settings.model,
        head_file=settings.head,
        device=settings.device,
        dtype=settings.dtype,
        max_length=settings.max_length,
        trust_remote_code=settings.trust_remote_code,
        chat_template=settings.chat_template,
        template_date=settings.template_date,
        say=logger.info,
    )
    for note in backbone.notes:
        logger.warning("model: %s", note)
    if settings.compile:
        logger.info("compiling the backbone; this takes minutes")
        try:
            backbone.compile()
        except Exception as error:  # the compiler's own, of many kinds: a C compiler is missing, …
            first = str(error).strip().partition("\n")[0]
            raise StartError(
                f"cannot compile the backbone ({first}): start without --compile"
            ) from error
    return backbone


async def run(settings: Settings, access: Access, *, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        access: of these settings (`open_access`).
        announce: hears one line when the server is ready.

    Raises:
        StartError: a port in use, or as `build`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    try:
        listener = bind(settings.http, "--http")
        ops_listener = None if settings.ops is None else bind(settings.ops, "--ops")
        with contextlib.closing(bind(settings.grpc, "--grpc")) as probe:
            # gRPC binds for itself, later: the probe finds a port in use before the model loads.
            grpc_address = shown(probe)
    except ListenError as error:
        raise StartError(str(error)) from error
    front, ops_front = Front(probes=ops_listener is None), Front()
    tls = access.tls.context if access.tls else None
    http = HttpServer(front, drain_seconds=settings.drain_seconds, tls=tls)
    ops = HttpServer(ops_front, drain_seconds=settings.drain_seconds, tls=None)
    place = f"http{'s' if tls else ''}://{shown(listener)} and grpc{'s' if tls else ''}://{grpc_address}"
    # From now on /livez answers; everything else says that the server is starting.
    serving = asyncio.ensure_future(http.serve(sockets=[listener]))
    operating = None
    if ops_listener is not None:
        place += f", probes on http://{shown(ops_listener)}"
        operating = asyncio.ensure_future(ops.serve(sockets=[ops_listener]))
    doors = Doors(access, front, ops_front, grpc_address, place)
    try:
        # In a thread: loading takes its time, and the loop has probes to answer. It cannot be cut
        # short, so a signal that comes meanwhile is heeded once it is done.
        parts = await asyncio.to_thread(build, settings)
        try:
            if not stop.is_set():
                await _serve(settings, parts, doors, stop, serving, announce)
        finally:
            parts.draining = True
            http.should_exit = True
            await serving
            await asyncio.to_thread(parts.close)
    finally:
        http.should_exit = ops.should_exit = True
        await serving
        if operating is not None:  # last, so that probes see the drain
            await operating


async def _serve(
    settings: Settings,
    parts: Parts,
    doors: Doors,
    stop: asyncio.Event,
    serving: asyncio.Future[None],
    announce: Callable[[str], None],
) -> None:
    """Warm up, open all doors, wait for the end, and let gRPC finish what it has."""
    await _warm_up(parts.application)
    budget, requests = (
        ByteBudget(settings.inflight_bytes),
        RequestLimit(settings.inflight_requests),
    )
    health, gate = Health(), Gate(doors.access.keys)
    on_gpu = parts.engine.info.device.startswith("cuda")
    buffers = BufferPool(settings.buffer_bytes, pinned if on_gpu else aligned)
    grpc_server = build_grpc(
        parts.application,
        max_message_bytes=min(settings.max_body_bytes, settings.grpc_message_bytes),
        max_stream_bytes=settings.max_body_bytes,
        max_stream_samples=settings.stream_samples,
        budget=budget,
        requests=requests,
        max_calls=MAX_GRPC_CALLS,
        health=health,
        buffers=buffers,
        gate=gate,
        metrics=parts.metrics,
        tracing=parts.tracing,
    )
    try:
        add_grpc_port(grpc_server, doors.grpc_address, doors.access.tls)
    except ListenError as error:
        raise StartError(str(error)) from error
    await grpc_server.start()
    scrape = parts.exposition(budget, requests, buffers).scrape
    doors.ops_front.open(
        build_ops(parts.application, budget=budget, requests=requests, scrape=scrape)
    )
    doors.front.open(
        build_app(
            parts.application,
            max_body_bytes=settings.max_body_bytes,
            budget=budget,
            requests=requests,
            buffers=buffers,
            compat_run=settings.compat_run,
            queries=parts.queries,
            gate=gate,
            probes=settings.ops is None,
            metrics=parts.metrics,
            scrape=scrape,
            tracing=parts.tracing,
        )
    )
    info = parts.engine.info
    announce(
        f"ready: {doors.place}, {info.model} ({info.dtype} on {info.device}), fingerprint "
        f"{info.fingerprint[:12]}, state in {settings.state}"
    )
    waiting = asyncio.ensure_future(stop.wait())
    serves = True
    while not (waiting.done() or serving.done()):
        await asyncio.wait(
            {waiting, serving}, timeout=HEALTH_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if serves != parts.engine.alive:  # a device that is lost does not come back
            serves = parts.engine.alive
            await health.set_serving(serves)
    waiting.cancel()
    logger.info("draining")
    parts.draining = True
    await health.set_serving(False)
    await grpc_server.stop(settings.drain_seconds)


async def _warm_up(application: Application) -> None:
    """One real pass, so that the first caller does not pay for lazy initialisation."""
    sample = SampleIn(id="warm-up", prompt="Hello", response="Hello", format="raw")
    answer = await application.score(None, VanillaRequest(samples=[sample]))
    error = answer.scores[0].error
    if error is not None:
        raise StartError(f"the warm-up pass failed: {error.message}")
