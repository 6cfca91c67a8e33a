"""The OpenAPI document: what each route takes and answers, with examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from r2m.errors import TABLE, Code
from r2m_service.application.contract import (
    AliasRequest,
    AlignRequest,
    AnchorsRequest,
    CreateRunRequest,
    ErrorBody,
    EvaluateRequest,
    LabelsRequest,
    ReplyAlignRequest,
    RollbackRequest,
    ScoreRequest,
    UpdateRunRequest,
    VanillaRequest,
)
from r2m_service.transports.access import OF_ROUTE
from r2m_service.transports.http.body import JSON, SAFETENSORS
from r2m_service.transports.http.examples import ANSWERS, REQUESTS, TENSOR_FILE, TENSORS

_REQUESTS: tuple[type[BaseModel], ...] = (
    AliasRequest,
    AlignRequest,
    AnchorsRequest,
    CreateRunRequest,
    EvaluateRequest,
    LabelsRequest,
    ReplyAlignRequest,
    RollbackRequest,
    ScoreRequest,
    UpdateRunRequest,
    VanillaRequest,
)

READING = (Code.UNKNOWN_RUN, Code.OVERLOADED, Code.NOT_READY, Code.STORAGE_FAILED)
BODY = (
    Code.INVALID_REQUEST,
    Code.LENGTH_REQUIRED,
    Code.TOO_LARGE,
    Code.UNSUPPORTED_MEDIA,
    Code.OVERLOADED,
    Code.NOT_READY,
    Code.DEADLINE_EXCEEDED,
    Code.COMPUTE_FAILED,
)
OPEN_RUN = (Code.UNKNOWN_RUN, Code.RUN_ARCHIVED, Code.BACKBONE_MISMATCH, Code.STORAGE_FAILED)


def operation(
    summary: str,
    *,
    answer: type[BaseModel] | None = None,
    also: Mapping[int, type[BaseModel]] | None = None,
    request: type[BaseModel] | None = None,
    tensors: bool = False,
    codes: Iterable[Code] = (),
    responses: dict[int | str, dict[str, Any]] | None = None,
    status: int = 200,
    status_of: Callable[[Code], int] = lambda code: TABLE[code].http,
) -> dict[str, Any]:
    """Keyword arguments of a route's decorator.

    Args:
        summary: one line.
        answer: the message of a success.
        also: other messages, by their status.
        request: the message of the body.
        tensors: whether the body may be a safetensors file.
        codes: the errors to expect.
        responses: further successes.
        status: of the usual success.
        status_of: the status of an error.
    """
    successes = dict(responses or {})
    if answer is not None:
        content_of = {JSON: {"example": ANSWERS[answer.__name__]}}
        successes[status] = {"description": (answer.__doc__ or "").strip(), "content": content_of}
    for other, message in (also or {}).items():
        successes[other] = {
            "model": message,
            "description": (message.__doc__ or "").strip(),
            "content": {JSON: {"example": ANSWERS[message.__name__]}},
        }
    extra: dict[str, Any] = {}
    if request is not None:
        content: dict[str, Any] = {
            JSON: {
                "schema": {"$ref": f"#/components/schemas/{request.__name__}"},
                "examples": {"usual": {"value": _request_example(request)}},
            }
        }
        if tensors:
            content[SAFETENSORS] = {
                "schema": {"type": "string", "contentMediaType": SAFETENSORS},
                "examples": {
                    "tensor": {
                        "summary": "the header, with the bytes left out",
                        "description": TENSORS,
                        "value": TENSOR_FILE,
                    }
                },
            }
        extra["requestBody"] = {"required": True, "content": content}
    return {
        "summary": summary,
        "status_code": status,
        "response_model": answer,
        "responses": {**successes, **_failures(codes, status_of)},
        "openapi_extra": extra,
    }


def _request_example(request: type[BaseModel]) -> Any:
    """Ours stand together in one file; a message of another interface carries its own."""
    extra = request.model_config.get("json_schema_extra")
    return cast("Any", extra)["examples"][0] if extra else REQUESTS[request.__name__]


def _failures(
    codes: Iterable[Code], status_of: Callable[[Code], int]
) -> dict[int | str, dict[str, Any]]:
    by_status: dict[int | str, list[Code]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(status_of(code), []).append(code)
    answers: dict[int | str, dict[str, Any]] = {
        status: {
            "model": ErrorBody,
            "description": "  \n".join(f"`{one.value}`: {TABLE[one].meaning}" for one in listed),
            "content": {JSON: {"example": _error_example(listed[0])}},
        }
        for status, listed in sorted(by_status.items(), key=lambda entry: str(entry[0]))
    }
    answers["default"] = {"model": ErrorBody, "description": "Any other error, in the same form."}
    return answers


def _error_example(code: Code) -> dict[str, Any]:
    row = TABLE[code]
    return {"error": {"code": code.value, "message": row.meaning, "retryable": row.retryable}}


NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own, of newer releases: it would send queries, and what exceptions say, to whatever
provider somebody has injected into the process. Spans of calls are `transports.counting`'s."""


class DocumentedApp(FastAPI):
    """FastAPI, with the request messages that its routes read by hand among the components.

    Attributes:
        more_requests: messages beside those of the native routes.
    """

    more_requests: tuple[type[BaseModel], ...] = ()

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            _, definitions = models_json_schema(
                [(model, "validation") for model in (*_REQUESTS, *self.more_requests)],
                ref_template="#/components/schemas/{model}",
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in definitions["$defs"].items():
                schemas.setdefault(name, schema)
            _secure(document)
            _link(document["paths"])
            self.openapi_schema = document
        return self.openapi_schema


def _secure(document: dict[str, Any]) -> None:
    """Say what key each operation takes. None will do as well where the server has no keys."""
    scheme = {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, `r2m_…`, of the scope that is named, or of one above it: "
        "score, align, admin. Servers without keys take calls without one. docs/access.md",
    }
    document["components"]["securitySchemes"] = {"key": scheme}
    refusals = _failures((Code.UNAUTHENTICATED, Code.FORBIDDEN), lambda code: TABLE[code].http)
    for methods in document["paths"].values():
        for operation in methods.values():
            scope = OF_ROUTE[operation["operationId"]].scope
            if scope is None:
                continue
            operation["security"] = [{"key": [scope.value]}, {}]
            for status in (TABLE[Code.UNAUTHENTICATED].http, TABLE[Code.FORBIDDEN].http):
                told = dict(refusals[status])
                schema = {"$ref": f"#/components/schemas/{told.pop('model').__name__}"}
                told["content"] = {JSON: {**told["content"][JSON], "schema": schema}}
                operation["responses"][str(status)] = told


def _link(paths: dict[str, Any]) -> None:
    """Say what can be called with the run that creating one answers: every route of a run."""
    links: dict[str, Any] = {}
    for path, methods in paths.items():
        given = {
            name: f"$response.body#/{name}" for name in ("run", "head") if f"{{{name}}}" in path
        }
        for operation in methods.values():
            if given:
                name = operation["operationId"]
                links[name] = {"operationId": name, "parameters": given}
    for status in ("200", "201"):
        paths["/v1/runs"]["post"]["responses"][status]["links"] = links
