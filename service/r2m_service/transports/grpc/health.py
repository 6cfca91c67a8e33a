"""The standard health service: one status for the whole server and for its one service."""

from __future__ import annotations

from typing import Any, cast

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

SERVICE = "r2m.v1.RewardModelService"


class Health(health_pb2_grpc.HealthServicer):
    """SERVING from the start; `set_serving` changes it, and watchers hear of it."""

    def __init__(self) -> None:
        # The package chooses this attribute at run time, which no type checker can follow.
        self._states: Any = cast("Any", health).aio.HealthServicer()

    async def set_serving(self, serving: bool) -> None:
        """Tell everyone whether calls are welcome."""
        status = health_pb2.HealthCheckResponse
        await self._states.set("", status.SERVING if serving else status.NOT_SERVING)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """The status now."""
        return await self._states.Check(_known(request), context)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - gRPC's name
        """The status now and at every change."""
        await self._states.Watch(_known(request), context)


def _known(request: Any) -> Any:
    # Asked about by name, the service has the status of the server.
    return health_pb2.HealthCheckRequest() if request.service == SERVICE else request
