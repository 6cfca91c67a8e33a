"""Problems as gRPC statuses with google.rpc details."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from r2m.errors import Problem
from r2m_service.application.metrics_port import NO_METRICS, Metrics
from r2m_service.transports.arrival import REQUEST_ID, arrived
from r2m_service.transports.counting import counted, snake
from r2m_service.transports.failures import only_problems, retry_after

T = TypeVar("T")
Context = grpc.aio.ServicerContext[bytes, bytes]

DOMAIN = "r2m"
DETAILS = "grpc-status-details-bin"

# Metadata has a bound of 8 KiB in all, and the sentence travels twice, once percent-encoded.
_MESSAGE_BYTES = 1024
_FIELD_BYTES = 256


async def or_abort(
    context: Context, work: Awaitable[T], *, name: str, metrics: Metrics = NO_METRICS
) -> T:
    """Await a handler's work, and count it; end the call with the table's status where it fails."""
    try:
        with counted(metrics, "grpc", snake(name)):
            return await only_problems(work, name=name)
    except Problem as error:
        problem = error
    await abort(context, problem)
    raise AssertionError("abort does not return")


async def abort(context: Context, problem: Problem) -> None:
    """End a call with a problem. Does not return."""
    code = cast("grpc.StatusCode", getattr(grpc.StatusCode, problem.row.grpc))
    message = _short(problem.message, _MESSAGE_BYTES)
    status = details(problem, code, message)
    await context.abort(
        code,
        message,
        ((DETAILS, status.SerializeToString()), (REQUEST_ID, arrived().request_id)),
    )


def details(problem: Problem, code: grpc.StatusCode, message: str) -> Status:
    """What the trailing metadata says of a problem."""
    about = {"retryable": "true" if problem.row.retryable else "false"}
    if problem.field is not None:
        about["field"] = _short(problem.field, _FIELD_BYTES)
    info = ErrorInfo(reason=problem.code.value, domain=DOMAIN, metadata=about)
    packed = [_pack(info)]
    if problem.row.retryable:
        packed.append(_pack(RetryInfo(retry_delay=Duration(seconds=retry_after(problem.code)))))
    number = cast("tuple[int, str]", code.value)[0]
    return Status(code=number, message=message, details=packed)


def _pack(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _short(text: str, most: int) -> str:
    raw = text.encode("utf-8", errors="replace")
    return text if len(raw) <= most else raw[: most - 3].decode("utf-8", errors="ignore") + "…"
