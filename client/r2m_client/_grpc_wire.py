"""Calls as protobuf messages, answers and errors back from them; no I/O here.

Messages are filled from the JSON body and read back into JSON, field by field of the same name, so
the HTTP transports' descriptions and readers serve here too. Only bytes are handled apart: they
would become base64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from r2m.errors import Code
from r2m.v1 import r2m_pb2 as pb
from r2m_client._errors import ConnectError, DeadlineError, ProtocolError, R2MError, server_error
from r2m_client._reading import finite, read
from r2m_client._results import AlignProgress, Score, ScoreResult
from r2m_client._samples import SampleWriter
from r2m_client._tls import grpc_handshake_failure
from r2m_client._transport import no_server

if TYPE_CHECKING:
    from r2m_client._calls import Call
    from r2m_client._samples import Sample, Tensor, WireDtype

M = TypeVar("M", bound=Message)

SERVICE = "/r2m.v1.RewardModelService/"
CHUNK_BYTES = 1 << 20
STREAM_ABOVE = 2 << 20
"""Bytes of hidden states from which align goes as a stream: below, one message is faster."""

DETAILS = "grpc-status-details-bin"

NOT_SENT = ("failed to connect to all addresses", "DNS resolution failed")
"""How gRPC's words begin where a call found no connection to be sent on."""
_SERVICE = pb.DESCRIPTOR.services_by_name["RewardModelService"]


class Failed(Protocol):
    """What grpc.RpcError of a call and grpc.aio.AioRpcError have in common."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Unary:
    """A serialized call of one message each way."""

    path: str
    payload: bytes
    answer: type[Message]

    def read(self, payload: bytes) -> object:
        """The answer's JSON. Raises ProtocolError."""
        return to_json(parsed(self.answer, payload))


@dataclass(frozen=True, slots=True)
class Download:
    """A serialized call that is answered by a file in chunks."""

    path: str
    payload: bytes

    def read(self, payload: bytes) -> bytes:
        """One chunk's data. Raises ProtocolError."""
        return parsed(pb.GetHeadWeightsResponse, payload).data


class AlignUpload:
    """AlignStream: the request without tensors, their bytes in chunks, progress and the answer."""

    def __init__(self, call: Call[Any], request: pb.AlignRequest) -> None:
        self.path = f"{SERVICE}AlignStream"
        self._first = pb.AlignStreamRequest(request=request).SerializeToString()
        self._call = call

    def payloads(self) -> Iterator[bytes]:
        """The messages to send: made one by one from the caller's arrays, the same every time."""
        yield self._first
        for tensor in self._call.tensors:
            for chunk in _chunks(tensor):
                yield pb.AlignStreamRequest(chunk=chunk).SerializeToString()

    def read(self, payload: bytes) -> object | None:
        """The answer's JSON, or None for a message of progress, which is passed on.

        Raises:
            ProtocolError: neither of the two.
        """
        message = parsed(pb.AlignStreamResponse, payload)
        part = message.WhichOneof("part")
        if part == "answer":
            return to_json(message.answer)
        if part == "progress" and self._call.progress is not None:
            self._call.progress(read(AlignProgress, to_json(message.progress)))
        return None  # progress, or a newer server's message


class ScoreStreamWire:
    """ScoreStream's messages.

    Args:
        call: a score without samples: run and head.
        wire_dtype: what float32 and wider hidden states are sent as.
    """

    path = f"{SERVICE}ScoreStream"

    def __init__(self, call: Call[ScoreResult], wire_dtype: WireDtype) -> None:
        request = pb.ScoreRequest()
        _fill(request, {**call.names, **(call.body or {})})
        self.opening = pb.ScoreStreamRequest(open=request).SerializeToString()
        self._wire_dtype: WireDtype = wire_dtype

    def sample(self, sample: Sample) -> Iterator[bytes]:
        """Its announcement, then its hidden states in chunks, made one by one.

        Raises:
            ValueError: it cannot be serialized; raised here, not while iterating.
        """
        writer = SampleWriter(self._wire_dtype)
        message = pb.Sample()
        _fill(message, writer.samples([sample])[0])
        first = pb.ScoreStreamRequest(sample=message).SerializeToString()
        return itertools.chain(
            (first,),
            (
                pb.ScoreStreamRequest(chunk=chunk).SerializeToString()
                for tensor in writer.tensors
                for chunk in _chunks(tensor)
            ),
        )

    def read(self, payload: bytes) -> ScoreResult | Score | None:
        """The head, an answer, or None for a newer server's message.

        Raises:
            ProtocolError: no message of this interface, or a reward that is no number.
        """
        message = parsed(pb.ScoreStreamResponse, payload)
        part = message.WhichOneof("part")
        if part == "opened":
            return read(ScoreResult, to_json(message.opened))
        if part == "score":
            return finite(read(Score, to_json(message.score)))
        return None


def grpc_request(call: Call[Any]) -> Unary | Download | AlignUpload:
    """Serialize a call.

    Raises:
        ValueError: the call cannot be serialized.
    """
    method = _SERVICE.methods_by_name[call.rpc]
    message = cast("Message", getattr(pb, method.input_type.name)())
    _fill(message, {**call.names, **(call.body or {})})
    if isinstance(message, pb.AlignRequest) and (
        call.progress is not None or call.tensor_bytes > STREAM_ABOVE
    ):
        return AlignUpload(call, message)
    _attach(call, message)
    payload = message.SerializeToString()
    if call.download:
        return Download(SERVICE + call.rpc, payload)
    return Unary(SERVICE + call.rpc, payload, getattr(pb, method.output_type.name))


def _fill(message: Message, body: Mapping[str, object]) -> None:
    try:
        json_format.ParseDict(dict(body), message)
    except json_format.ParseError as error:
        raise ValueError(str(error)) from None


def _chunks(tensor: Tensor) -> Iterator[pb.Chunk]:
    # Slices of a view: only the message at hand is a copy of the caller's array.
    view = memoryview(tensor.value.data)
    for start in range(0, len(view), CHUNK_BYTES):
        yield pb.Chunk(id=tensor.name, data=bytes(view[start : start + CHUNK_BYTES]))


def _attach(call: Call[Any], message: Message) -> None:
    if not call.tensors:
        return
    if isinstance(message, pb.AlignRequest):
        samples = [sample for group in message.groups for sample in group.samples]
        samples += [one for pair in message.anchors for one in (pair.chosen, pair.rejected)]
    elif isinstance(message, pb.EvaluateRequest):
        samples = [one for pair in message.pairs for one in (pair.chosen, pair.rejected)]
    else:
        samples = list(cast("pb.ScoreRequest", message).samples)
    for tensor in call.tensors:
        samples[tensor.position].feedback.data = bytes(tensor.value.data)


def parsed(kind: type[M], payload: bytes) -> M:
    """A message from its bytes.

    Raises:
        ProtocolError: they are something else's.
    """
    try:
        return kind.FromString(payload)
    except DecodeError as error:
        raise ProtocolError(f"the answer is no {kind.__name__} of r2m.v1: {error}") from None


def to_json(message: Message) -> dict[str, Any]:
    """A message as the JSON of the HTTP interface, but for 64-bit integers, which are strings.

    Raises:
        ProtocolError: it holds what JSON cannot.
    """
    try:
        return json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    except (json_format.Error, ValueError) as error:  # an infinity in a Struct
        raise ProtocolError(f"the answer cannot be read: {error}") from None


def grpc_failure(error: Failed, where: str) -> R2MError:
    """What a failed call means for the caller."""
    code, said = error.code(), error.details() or ""
    ours = _details(error.trailing_metadata(), said)
    if ours is not None:
        return ours
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"no complete answer from {where} within the call's timeout")
    untrusted = grpc_handshake_failure(said, where)
    if untrusted is not None:
        return untrusted
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        if said.startswith(NOT_SENT):
            return no_server(where, said[:300])
        # A server that is shutting down cancels what it is working on. Whether a request had been
        # sent when the connection failed is not said.
        return ConnectError(f"no answer from {where}: {said[:300]}")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in said:
        return server_error({"code": Code.TOO_LARGE, "message": said[:300]})
    return ProtocolError(
        f"{where} answered {code.name} without this interface's details: {said!r:.300}"
    )


def _details(metadata: Any, said: str) -> R2MError | None:
    """The error in the google.rpc.Status that a server of ours attaches, or None."""
    found: dict[str, Any] = dict(metadata or ())
    if DETAILS not in found:
        return None
    try:
        status = status_pb2.Status.FromString(found[DETAILS])
    except DecodeError:
        return None
    return _status_error(status, said, found.get("x-request-id"))


def _status_error(status: status_pb2.Status, said: str, request_id: str | None) -> R2MError | None:
    info, pause = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    found, wait = False, None
    for detail in status.details:
        # Unpack leaves its argument alone and says False where the detail is of another type.
        if not found and detail.Unpack(info):
            found = info.domain == "r2m"
        elif detail.Unpack(pause):
            wait = max(0.0, pause.retry_delay.seconds + pause.retry_delay.nanos / 1e9)
    if not found:
        return None
    body: dict[str, object] = {"code": info.reason, "message": status.message or said}
    if "field" in info.metadata:
        body["field"] = info.metadata["field"]
    if "retryable" in info.metadata:
        body["retryable"] = info.metadata["retryable"].lower() == "true"
    return server_error(body, retry_after=wait, request_id=request_id)
