"""Routes of runs and their heads."""

# No postponed annotations here: FastAPI reads them, and must find the types.

import re
from collections.abc import AsyncIterator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from r2m.errors import Code
from r2m_service.application.contract import (
    AliasOut,
    AliasRequest,
    ChangeList,
    CreateRunRequest,
    HeadList,
    HeadOut,
    RollbackRequest,
    RunList,
    RunOut,
    UpdateRunRequest,
)
from r2m_service.transports.access import require_run, visible
from r2m_service.transports.http.answers import answer
from r2m_service.transports.http.body import SAFETENSORS, Intake
from r2m_service.transports.http.docs import BODY, OPEN_RUN, READING, operation
from r2m_service.transports.interface import Application

_PIECE = 1 << 20


def runs(application: Application, intake: Intake) -> APIRouter:
    """Creating, seeing, archiving and rolling back runs."""
    routes = APIRouter(tags=["runs"])

    @routes.post(
        "/v1/runs",
        **operation(
            "Create a run; the same body again answers with the run as it is",
            answer=RunOut,
            request=CreateRunRequest,
            codes=(*BODY, Code.RUN_EXISTS, Code.STORAGE_FAILED),
            responses={200: {"model": RunOut, "description": "The run was there already."}},
            status=201,
        ),
    )
    async def create_run(request: Request) -> Response:
        async with intake.message(request, CreateRunRequest) as message:
            require_run(message.run)
            run, new = await application.create_run(message)
            return answer(run, status=201 if new else 200)

    @routes.get("/v1/runs", **operation("All runs", answer=RunList, codes=READING[1:]))
    async def list_runs() -> Response:
        return answer(visible(await application.list_runs()))

    @routes.get("/v1/runs/{run}", **operation("A run as it stands", answer=RunOut, codes=READING))
    async def get_run(run: str) -> Response:
        return answer(await application.get_run(run))

    @routes.patch(
        "/v1/runs/{run}",
        **operation(
            "Change settings that may change in a run's life",
            answer=RunOut,
            request=UpdateRunRequest,
            codes=(*BODY, *OPEN_RUN),
        ),
    )
    async def update_run(run: str, request: Request) -> Response:
        async with intake.message(request, UpdateRunRequest) as message:
            return answer(await application.update_run(run, message))

    @routes.get(
        "/v1/runs/{run}/changes",
        **operation("A run's audit trail", answer=ChangeList, codes=READING),
    )
    async def list_changes(run: str) -> Response:
        return answer(await application.list_changes(run))

    @routes.delete(
        "/v1/runs/{run}",
        **operation("Archive a run: it stays readable", answer=RunOut, codes=READING),
    )
    async def archive_run(run: str) -> Response:
        return answer(await application.archive_run(run))

    @routes.post(
        "/v1/runs/{run}/rollback",
        **operation(
            "Back to a head or a step, on a new branch",
            answer=RunOut,
            request=RollbackRequest,
            codes=(
                *BODY,
                *OPEN_RUN,
                Code.UNKNOWN_HEAD,
                Code.UNKNOWN_BRANCH,
                Code.HEAD_PRUNED,
                Code.ALIGN_CONFLICT,
            ),
        ),
    )
    async def rollback(run: str, request: Request) -> Response:
        async with intake.message(request, RollbackRequest) as message:
            return answer(await application.rollback(run, message))

    return routes


def heads(application: Application, intake: Intake) -> APIRouter:
    """Versions, their weights, and the names that point at them."""
    routes = APIRouter(tags=["heads"])
    reading = (*READING, Code.UNKNOWN_HEAD, Code.UNKNOWN_ALIAS)

    @routes.get(
        "/v1/runs/{run}/heads",
        **operation("All versions of a run", answer=HeadList, codes=READING),
    )
    async def list_heads(run: str) -> Response:
        return answer(await application.list_heads(run))

    @routes.get(
        "/v1/runs/{run}/heads/{head}",
        **operation("A version, by number or alias", answer=HeadOut, codes=reading),
    )
    async def get_head(run: str, head: str) -> Response:
        return answer(await application.get_head(run, head))

    @routes.get(
        "/v1/runs/{run}/heads/{head}/weights",
        response_class=StreamingResponse,
        **operation(
            "A version's weights",
            codes=(*reading, Code.HEAD_PRUNED, Code.HEAD_DAMAGED),
            responses={
                200: {
                    "description": "A safetensors file; `r2m-head` names the version.",
                    "content": {
                        SAFETENSORS: {"schema": {"type": "string", "contentMediaType": SAFETENSORS}}
                    },
                    "headers": {
                        "ETag": {
                            "description": "SHA-256 of the file",
                            "schema": {"type": "string"},
                        },
                        "r2m-head": {"schema": {"type": "integer"}},
                    },
                }
            },
        ),
    )
    async def head_weights(run: str, head: str) -> Response:
        version, data = await application.head_weights(run, head)
        name = re.sub(r"[^A-Za-z0-9._-]", "_", version.run)
        headers = {
            "Content-Length": str(len(data)),
            "Content-Disposition": f'attachment; filename="{name}-head-{version.head}.safetensors"',
            "ETag": f'"{version.sha256}"',
            "r2m-head": str(version.head),
        }
        return StreamingResponse(_pieces(data), headers=headers, media_type=SAFETENSORS)

    @routes.put(
        "/v1/runs/{run}/aliases/{alias}",
        **operation(
            "Move an alias; with `expect`, only from where it must point now",
            answer=AliasOut,
            request=AliasRequest,
            codes=(
                *BODY,
                *OPEN_RUN,
                Code.UNKNOWN_HEAD,
                Code.HEAD_PRUNED,
                Code.ALIAS_RESERVED,
                Code.ALIAS_MOVED,
            ),
        ),
    )
    async def set_alias(run: str, alias: str, request: Request) -> Response:
        async with intake.message(request, AliasRequest) as message:
            return answer(await application.set_alias(run, alias, message))

    return routes


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(data), _PIECE):
        yield bytes(view[start : start + _PIECE])
