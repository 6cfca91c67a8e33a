"""A small server that speaks both transports from one script, for tests of the client.

It is written from the interface alone and shares nothing with the client or the service but the
protobuf messages and the error table.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import safetensors
from google.protobuf import any_pb2, duration_pb2, json_format
from google.rpc import error_details_pb2, status_pb2

from r2m.errors import TABLE, Problem
from r2m.v1 import r2m_pb2 as pb

ROUTES = [
    ("GET", r"/v1/server", "GetServer"),
    ("POST", r"/v1/score", "Score"),
    ("POST", r"/v1/runs", "CreateRun"),
    ("GET", r"/v1/runs", "ListRuns"),
    ("GET", r"/v1/runs/(?P<run>[^/]+)", "GetRun"),
    ("DELETE", r"/v1/runs/(?P<run>[^/]+)", "DeleteRun"),
    ("POST", r"/v1/runs/(?P<run>[^/]+)/score", "Score"),
    ("POST", r"/v1/runs/(?P<run>[^/]+)/align", "Align"),
    ("GET", r"/v1/runs/(?P<run>[^/]+)/heads", "ListHeads"),
    ("GET", r"/v1/runs/(?P<run>[^/]+)/heads/(?P<head>[^/]+)", "GetHead"),
    ("GET", r"/v1/runs/(?P<run>[^/]+)/heads/(?P<head>[^/]+)/weights", "GetHeadWeights"),
    ("PUT", r"/v1/runs/(?P<run>[^/]+)/aliases/(?P<alias>[^/]+)", "SetAlias"),
    ("POST", r"/v1/runs/(?P<run>[^/]+)/rollback", "Rollback"),
]

RUN = {
    "run": "tldr",
    "fingerprint": "f00d",
    "policy": {"hidden_size": 4, "hidden_state": "post_norm", "last_token": True},
    "feedback": "policy",
    "method": {
        "profile": "guarded",
        "width": 8,
        "kl_weight": 0.5,
        "max_grad_norm": None,
        "omega": {"steps": [1, 2.5]},
    },
    "branch": "main",
    "step": 2,
    "next_step": 3,
    "head": 1,
    "aliases": {"live": 1, "reference": 0},
    "archived": False,
    "created_at": "2026-11-20T10:00:00Z",
    "branches": [
        {"branch": "main", "head": 1, "step": 2},
        {"branch": "b1", "head": 0, "step": 0, "origin_branch": "main", "origin_step": 0},
    ],
    "disk": {"heads": 1, "weights_bytes": 134217728, "optimizer_bytes": 268435456},
}
HEAD = {
    "run": "tldr",
    "head": 1,
    "parent": 0,
    "branch": "main",
    "step": 1,
    "t": 1,
    "omega": 0.6,
    "reference": 0,
    "accepted": True,
    "verdict": "accepted",
    "reason": "",
    "metrics": {"kl": 0.25},
    "created_at": "2026-11-20T10:00:00Z",
    "sha256": "ab",
    "bytes": 12,
    "aliases": ["live"],
    "pruned": True,
    "pruned_at": "2026-11-21T10:00:00Z",
    "optimizer_bytes": 24,
}
ALIGNED = {
    "run": "tldr",
    "step": 7,
    "branch": "main",
    "head": 0,
    "candidate": 1,
    "parent": 0,
    "accepted": False,
    "verdict": "rejected",
    "reason": "drift",
    "omega": 0.5,
    "loss": {"bt": 0.7, "total": 0.75},
    "groups": {
        "used": 1,
        "skipped": 1,
        "pseudo": 1,
        "labelled": 0,
        "skipped_because": {"tie": 1},
    },
    "drift": {"reference": 0, "spread_ratio": 1.5, "samples": 4},
    "sigma": 0.1,
    "errors": [
        {
            "id": "b",
            "group": "g",
            "error": {"code": "feedback_width", "message": "too narrow", "retryable": False},
        }
    ],
    "notes": ["look"],
}
WEIGHTS = (2).to_bytes(8, "little") + b"{}"


@dataclass
class Seen:
    """One request as it came: the JSON without data, tensors by id, payload bytes."""

    rpc: str
    request: dict[str, Any]
    tensors: dict[str, bytes] = field(default_factory=dict)
    payloads: list[bytes] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    time_left: float | None = None
    streamed: bool = False


@dataclass
class Refuse:
    """An answer that is an error of the table, with what a server adds to it."""

    problem: Problem
    retry_after: float | None = None
    code: str | None = None  # one that the table does not have
    stated: bool | None = None  # `retryable`, where it differs from the table


class Script:
    """What the server answers: the next step of `steps`, or the usual answer when there is none.

    A step is a dict (the answer), bytes (a raw HTTP body or message), a Refuse, or a function of
    the request that returns one of these.
    """

    def __init__(self) -> None:
        self.steps: deque[Any] = deque()
        self.seen: list[Seen] = []

    def answer(self, seen: Seen) -> Any:
        self.seen.append(seen)
        step = self.steps.popleft() if self.steps else usual
        return step(seen) if isinstance(step, Callable) else step


def usual(seen: Seen) -> Any:
    match seen.rpc:
        case "Score":
            samples = seen.request.get("samples", [])
            scores = [{"id": s["id"], "vanilla_reward": float(i)} for i, s in enumerate(samples)]
            if not seen.request.get("run"):
                return {"fingerprint": "f00d", "scores": scores}
            for score in scores:
                score["reward"] = score["vanilla_reward"] + 0.5
            return {
                "run": seen.request["run"],
                "head": 12,
                "branch": "main",
                "omega": 0.6,
                "fingerprint": "f00d",
                "scores": scores,
            }
        case "Align" | "AlignStream":
            return ALIGNED
        case "ListRuns":
            return {"runs": [RUN]}
        case "ListHeads":
            return {"heads": [{**HEAD, "head": 0, "parent": None}, HEAD]}
        case "GetHead":
            return HEAD
        case "GetHeadWeights":
            return WEIGHTS
        case "SetAlias":
            return {"run": "tldr", "alias": seen.request["alias"], "head": 1, "previous": 0}
        case "GetServer":
            return {
                "version": "0.1.0",
                "model": "tiny",
                "fingerprint": "f00d",
                "hidden_size": 16,
                "max_length": 64,
                "dtype": "float32",
                "device": "cpu",
                "deterministic": False,
                "chat_template": True,
            }
        case _:
            return RUN


# ------------------------------------------------------------------ HTTP


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement
    server: _HttpServer

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        matched = [
            (rpc, found)
            for verb, pattern, rpc in ROUTES
            if verb == self.command and (found := re.fullmatch(pattern, self.path))
        ]
        if not matched:
            self._send(404, b'{"error":{"code":"not_found","message":"no route"}}', {})
            return
        rpc, found = matched[0]
        seen = Seen(rpc, {}, payloads=[body], headers=dict(self.headers.items()))
        if self.headers.get("Content-Type") == "application/x-safetensors":
            size = int.from_bytes(body[:8], "little")
            assert size % 8 == 0
            metadata = json.loads(body[8 : 8 + size])["__metadata__"]
            seen.request = json.loads(metadata["request"])
            for name, tensor in safetensors.deserialize(body):
                seen.tensors[name] = bytes(tensor["data"])
        elif body:
            seen.request = json.loads(body)
        seen.request |= found.groupdict()
        self._give(self.server.script.answer(seen))

    def _give(self, answer: Any) -> None:
        if answer is None:  # the server dies
            self.close_connection = True
        elif isinstance(answer, Refuse):
            error = answer.problem.as_dict()
            error["code"] = answer.code or error["code"]
            if answer.stated is not None:
                error["retryable"] = answer.stated
            wait = answer.retry_after
            headers = {} if wait is None else {"Retry-After": f"{wait:g}"}
            body = json.dumps({"error": error}).encode()
            self._send(answer.problem.row.http, body, headers)
        elif isinstance(answer, bytes):
            self._send(200, answer, {"Content-Type": "application/octet-stream"})
        elif isinstance(answer, tuple):  # (status, body, headers): a gateway's
            self._send(*answer)
        else:
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _HttpServer(ThreadingHTTPServer):
    request_queue_size = 64  # connections beyond it would wait a second
    script: Script

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that gave up
            super().handle_error(request, client_address)


class HttpServer:
    """The current script over HTTP, on a port of the loopback; 0: a free one."""

    scheme = "http"

    def __init__(self, port: int = 0) -> None:
        self._server = _HttpServer(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def play(self, script: Script) -> None:
        self._server.script = script

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


# ------------------------------------------------------------------ gRPC


class _Service(grpc.GenericRpcHandler):
    script: Script

    def service(self, details: Any) -> Any:
        script = self.script
        rpc = details.method.rsplit("/", 1)[1]
        method = pb.DESCRIPTOR.services_by_name["RewardModelService"].methods_by_name[rpc]
        metadata = {item.key: item.value for item in details.invocation_metadata}

        def unary(payload: bytes, context: grpc.ServicerContext) -> bytes:
            request = getattr(pb, method.input_type.name).FromString(payload)
            seen = Seen(rpc, {}, payloads=[payload], headers=metadata)
            seen.time_left = context.time_remaining()
            seen.request, seen.tensors = _open(request)
            answer = _checked(script.answer(seen), context)
            if isinstance(answer, bytes):
                return answer
            message = getattr(pb, method.output_type.name)()
            return json_format.ParseDict(
                answer, message, ignore_unknown_fields=True
            ).SerializeToString()

        def download(payload: bytes, context: grpc.ServicerContext) -> Any:
            answer = unary(payload, context)
            for start in range(0, len(answer), 4):
                part = answer[start : start + 4]
                yield pb.GetHeadWeightsResponse(data=part).SerializeToString()

        def stream(payloads: Any, context: grpc.ServicerContext) -> Any:
            seen = Seen("Align", {}, headers=metadata, streamed=True)
            seen.time_left = context.time_remaining()
            for payload in payloads:
                seen.payloads.append(payload)
                part = pb.AlignStreamRequest.FromString(payload)
                if part.WhichOneof("part") == "request":
                    seen.request, _ = _open(part.request)
                else:
                    held = seen.tensors.get(part.chunk.id, b"")
                    seen.tensors[part.chunk.id] = held + part.chunk.data
            answer = _checked(script.answer(seen), context)
            for done in (1, 2):
                progress = pb.Progress(groups_done=done, groups_total=2)
                yield pb.AlignStreamResponse(progress=progress).SerializeToString()
            if answer:
                message = json_format.ParseDict(answer, pb.AlignResponse())
                yield pb.AlignStreamResponse(answer=message).SerializeToString()

        def scores(payloads: Any, context: grpc.ServicerContext) -> Any:
            for payload in payloads:
                part = pb.ScoreStreamRequest.FromString(payload)
                if part.WhichOneof("part") == "open":
                    opened = pb.ScoreResponse(run="tldr", head=12, branch="main", fingerprint="f")
                    yield pb.ScoreStreamResponse(opened=opened).SerializeToString()
                else:
                    score = pb.Score(id=part.sample.id, reward=0.5)
                    yield pb.ScoreStreamResponse(score=score).SerializeToString()

        if rpc == "AlignStream":
            return grpc.stream_stream_rpc_method_handler(stream)
        if rpc == "ScoreStream":
            return grpc.stream_stream_rpc_method_handler(scores)
        if rpc == "GetHeadWeights":
            return grpc.unary_stream_rpc_method_handler(download)
        return grpc.unary_unary_rpc_method_handler(unary)


def _open(request: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A request's JSON as HTTP would have it, and its tensors apart."""
    tensors: dict[str, bytes] = {}
    groups = getattr(request, "groups", None)
    samples = getattr(request, "samples", [])
    for sample in [s for g in groups for s in g.samples] if groups is not None else samples:
        if sample.HasField("feedback") and sample.feedback.data:
            tensors[sample.id] = sample.feedback.data
            sample.feedback.ClearField("data")
    return json_format.MessageToDict(request, preserving_proto_field_name=True), tensors


def _checked(answer: Any, context: grpc.ServicerContext) -> Any:
    if answer is None:  # the server dies
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    if isinstance(answer, tuple):  # (status, details): a gateway's, without ours
        context.abort(*answer)
    if isinstance(answer, Refuse):
        problem = answer.problem
        row = TABLE[problem.code]
        retryable = row.retryable if answer.stated is None else answer.stated
        metadata = {"retryable": str(retryable).lower()}
        if problem.field is not None:
            metadata["field"] = problem.field
        status = status_pb2.Status(message=problem.message)
        status.details.append(any_pb2.Any())
        status.details[-1].Pack(
            error_details_pb2.ErrorInfo(
                reason=answer.code or problem.code.value, domain="r2m", metadata=metadata
            )
        )
        if answer.retry_after is not None:
            delay = duration_pb2.Duration(nanos=round(answer.retry_after * 1e9) % 10**9)
            delay.seconds = int(answer.retry_after)
            status.details.append(any_pb2.Any())
            status.details[-1].Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(getattr(grpc.StatusCode, row.grpc), problem.message)
    return answer


class GrpcServer:
    """The current script over gRPC, on a port of the loopback; 0: a free one."""

    scheme = "grpc"

    def __init__(self, port: int = 0) -> None:
        self._pool = ThreadPoolExecutor(4)
        self._service = _Service()
        self._server = grpc.server(
            self._pool,
            [self._service],
            options=[("grpc.max_receive_message_length", 64 << 20)],
        )
        port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()
        self.url = f"grpc://127.0.0.1:{port}"

    def play(self, script: Script) -> None:
        self._service.script = script

    def stop(self) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()
