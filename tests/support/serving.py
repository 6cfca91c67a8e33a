"""A real server inside the test process: real sockets, real model, both transports."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import uvicorn

from r2m_service.bootstrap import build
from r2m_service.modeling.loading import load_backbone
from r2m_service.settings import Settings
from r2m_service.transports.buffers import BufferPool
from r2m_service.transports.grpc.server import build_grpc
from r2m_service.transports.http.app import build_app
from r2m_service.transports.limits import ByteBudget, RequestLimit

MIB = 1 << 20


class Server:
    """Where it answers, and its parts for tests that look inside."""

    def __init__(self, parts, http, grpc):
        self.parts = parts
        self.urls = {"http": http, "grpc": grpc}


@contextlib.contextmanager
def running(model, state, *, backbone=None, over_grpc=None, gate=None, **changes):
    """Serve a model on loopback until the block ends.

    Args:
        gate: of HTTP calls; None: open to all.
        backbone: a loaded one, shared between servers: loading takes most of a start.
        over_grpc: more for build_grpc: a budget, idle_seconds, ...
    """
    settings = Settings(
        **{"model": str(model), "state": state, "max_body_bytes": 8 * MIB, **changes}
    )
    parts = build(settings, backbone=backbone or load_backbone(str(model)))
    started, stop, loop_of, ports = threading.Event(), None, None, {}

    async def main():
        nonlocal stop, loop_of
        stop, loop_of = asyncio.Event(), asyncio.get_running_loop()
        limits = {
            "budget": ByteBudget(settings.inflight_bytes),
            "requests": RequestLimit(settings.inflight_requests),
            "buffers": BufferPool(settings.buffer_bytes),
        }
        http = uvicorn.Server(
            uvicorn.Config(
                build_app(
                    parts.application,
                    max_body_bytes=settings.max_body_bytes,
                    compat_run=settings.compat_run,
                    queries=parts.queries,
                    metrics=parts.metrics,
                    scrape=parts.exposition(**limits).scrape,
                    tracing=parts.tracing,
                    gate=gate,
                    **limits,
                ),
                port=0,
                log_config=None,
            )
        )
        http.capture_signals = contextlib.nullcontext
        grpc_server = build_grpc(
            parts.application,
            max_message_bytes=settings.max_body_bytes,
            metrics=parts.metrics,
            tracing=parts.tracing,
            **{**limits, **(over_grpc or {})},
        )
        ports["grpc"] = grpc_server.add_insecure_port("127.0.0.1:0")
        await grpc_server.start()
        serving = asyncio.create_task(http.serve())
        while not http.started:
            await asyncio.sleep(0.005)
        ports["http"] = http.servers[0].sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        http.should_exit = True
        await grpc_server.stop(1)
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="server")
    thread.start()
    try:
        assert started.wait(60)
        yield Server(
            parts, f"http://127.0.0.1:{ports['http']}", f"grpc://127.0.0.1:{ports['grpc']}"
        )
    finally:
        if loop_of is not None:
            loop_of.call_soon_threadsafe(stop.set)
        thread.join()
        parts.close()
