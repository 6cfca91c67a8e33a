"""Builds a server from its settings and runs it: the one place that knows every part."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib.metadata import version

import torch
import uvicorn

from r2m.errors import Problem
from r2m_service.application.app import Application
from r2m_service.application.contract import SampleIn, VanillaRequest
from r2m_service.engine.torch_engine import EngineLimits, TorchEngine
from r2m_service.modeling.backbone import Backbone, ModelRefusedError, load_backbone
from r2m_service.registry.blobs import BlobStore
from r2m_service.registry.sql import SqlRegistry
from r2m_service.settings import Settings
from r2m_service.transports.grpc.health import Health
from r2m_service.transports.grpc.server import build_grpc
from r2m_service.transports.http.app import build_app
from r2m_service.transports.limits import ByteBudget

logger = logging.getLogger("r2m")


class StartError(RuntimeError):
    """Why the server cannot start, in one line that names the way out."""


@dataclass
class Parts:
    """A server's parts, wired but not yet listening."""

    application: Application
    engine: TorchEngine
    registry: SqlRegistry
    draining: bool = False

    def close(self) -> None:
        """Stop the device thread and let go of the database."""
        self.engine.stop()
        self.registry.close()


def build(settings: Settings, *, backbone: Backbone | None = None) -> Parts:
    """Load the model, open the registry, wire everything.

    Args:
        backbone: one that is loaded already (tests share it).

    Raises:
        StartError: model, folder or database that cannot be used.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        torch.use_deterministic_algorithms(True)
    registry = _open_registry(settings)
    try:
        loaded = backbone or _load(settings)
        blobs = BlobStore(settings.blobs_url)
    except (ModelRefusedError, Problem, OSError, ValueError) as error:
        registry.close()
        raise StartError(str(error)) from error
    engine = TorchEngine(
        loaded,
        limits=EngineLimits(
            token_budget=settings.token_budget,
            batch_items=settings.batch_items,
            cache_bytes=settings.cache_bytes,
            head_cache_bytes=settings.head_cache_bytes,
        ),
        deterministic=settings.deterministic,
    )
    engine.start()

    def ready() -> bool:
        return engine.alive and not parts.draining

    application = Application(
        registry,
        blobs,
        engine,
        version=version("r2m-serve"),
        ready=ready,
        max_head_bytes=settings.max_head_bytes,
    )
    parts = Parts(application, engine, registry)
    return parts


def _open_registry(settings: Settings) -> SqlRegistry:
    try:
        return SqlRegistry(settings.registry_location)
    except Problem as error:
        where = "--registry" if settings.registry else f"--state {settings.state}"
        raise StartError(f"{error.message} ({where})") from error


def _load(settings: Settings) -> Backbone:
    return load_backbone(
        settings.model,
        head_file=settings.head,
        device=settings.device,
        dtype=settings.dtype,
        max_length=settings.max_length,
        trust_remote_code=settings.trust_remote_code,
        say=logger.info,
    )


class _HttpServer(uvicorn.Server):
    """Leaves signals to the caller, who stops both transports together."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def run(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        announce: hears one line when the server is ready.

    Raises:
        StartError: a port in use, or as `build`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    listener = _bind(settings.http, "--http")
    with contextlib.closing(_bind(settings.grpc, "--grpc")) as probe:
        # gRPC binds for itself, later: the probe finds a port in use before the model is loaded.
        grpc_address = "{}:{}".format(*probe.getsockname()[:2])
    # Loading takes its time; Ctrl-C must not wait for it.
    building = asyncio.ensure_future(asyncio.to_thread(build, settings))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({building, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not building.done():
        logger.info("stopping: the model at hand is loaded to its end first")
    try:
        parts = await building
    except BaseException:
        listener.close()
        stopping.cancel()
        raise
    try:
        await _serve(settings, parts, listener, grpc_address, stop, announce)
    finally:
        stopping.cancel()
        await asyncio.to_thread(parts.close)


async def _serve(
    settings: Settings,
    parts: Parts,
    listener: socket.socket,
    grpc_address: str,
    stop: asyncio.Event,
    announce: Callable[[str], None],
) -> None:
    await _warm_up(parts.application)
    budget, health = ByteBudget(settings.inflight_bytes), Health()
    http = _HttpServer(
        uvicorn.Config(
            build_app(parts.application, max_body_bytes=settings.max_body_bytes, budget=budget),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        )
    )
    grpc_server = build_grpc(
        parts.application,
        max_message_bytes=settings.max_body_bytes,
        max_stream_samples=settings.stream_samples,
        budget=budget,
        health=health,
    )
    try:
        grpc_server.add_insecure_port(grpc_address)
    except RuntimeError as error:
        listener.close()
        raise StartError(f"cannot listen for gRPC on {grpc_address}: {error}") from error
    await grpc_server.start()
    serving = asyncio.ensure_future(http.serve(sockets=[listener]))
    try:
        while not http.started and not serving.done():
            await asyncio.sleep(0.01)
        info = parts.engine.info
        host, port = listener.getsockname()[:2]
        announce(
            f"ready: http://{host}:{port} and grpc://{grpc_address}, {info.model} "
            f"({info.dtype} on {info.device}), fingerprint {info.fingerprint[:12]}, "
            f"state in {settings.state}"
        )
        waiting = asyncio.ensure_future(stop.wait())
        await asyncio.wait({waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
    finally:
        logger.info("draining")
        parts.draining = True
        await health.set_serving(False)
        http.should_exit = True
        await asyncio.gather(grpc_server.stop(settings.drain_seconds), serving)


async def _warm_up(application: Application) -> None:
    """One real pass, so that the first caller does not pay for lazy initialisation."""
    sample = SampleIn(id="warm-up", prompt="Hello", response="Hello", format="raw")
    answer = await application.score(None, VanillaRequest(samples=[sample]))
    error = answer.scores[0].error
    if error is not None:
        raise StartError(f"the warm-up pass failed: {error.message}")


def _bind(address: str, flag: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {address} ({error.strerror}): choose another with {flag}"
        ) from error
    return listener
