"""Routes of anchors and outside labels."""

# No postponed annotations here: FastAPI reads them, and must find the types.

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from r2m.errors import Code
from r2m_service.application.contract import (
    MAX_LISTED,
    AnchorsOut,
    AnchorsRequest,
    KeptSampleList,
    LabelsAnswer,
    LabelsRequest,
)
from r2m_service.transports.http.answers import answer
from r2m_service.transports.http.body import Intake
from r2m_service.transports.http.docs import BODY, OPEN_RUN, READING, operation
from r2m_service.transports.interface import Application

# Their bounds are for the document: the application refuses what is beyond, as over gRPC.
_After = Annotated[
    int, Query(description="the `next` of the page before", json_schema_extra={"minimum": 0})
]
_Limit = Annotated[int, Query(json_schema_extra={"minimum": 1, "maximum": MAX_LISTED})]
_Waiting = Annotated[bool, Query(description="those without a label alone")]


def labels(application: Application, intake: Intake) -> APIRouter:
    """What judges candidates, and what people or judges say of samples."""
    routes = APIRouter(tags=["labels"])

    @routes.put(
        "/v1/runs/{run}/anchors",
        **operation(
            "Held-out gold pairs that judge candidates: the whole set",
            answer=AnchorsOut,
            request=AnchorsRequest,
            codes=(
                *BODY,
                *OPEN_RUN,
                Code.DUPLICATE_ID,
                Code.TEXT_EMPTY,
                Code.TEXT_INVALID,
                Code.TEXT_TOO_LONG,
                Code.NO_CHAT_TEMPLATE,
            ),
        ),
    )
    async def put_anchors(run: str, request: Request) -> Response:
        async with intake.message(request, AnchorsRequest) as message:
            return answer(await application.put_anchors(run, message))

    @routes.get(
        "/v1/runs/{run}/anchors",
        **operation(
            "The anchor set that judges", answer=AnchorsOut, codes=(*READING, Code.NO_ANCHORS)
        ),
    )
    async def get_anchors(run: str) -> Response:
        return answer(await application.get_anchors(run))

    @routes.post(
        "/v1/runs/{run}/labels",
        **operation(
            "Outside labels of marked samples: late, in any order, again",
            answer=LabelsAnswer,
            request=LabelsRequest,
            codes=(*BODY, *OPEN_RUN),
        ),
    )
    async def add_labels(run: str, request: Request) -> Response:
        async with intake.message(request, LabelsRequest) as message:
            return answer(await application.add_labels(run, message))

    @routes.get(
        "/v1/runs/{run}/samples",
        **operation(
            "Marked samples, for a labelling tool",
            answer=KeptSampleList,
            codes=(*READING, Code.INVALID_REQUEST),
        ),
    )
    async def list_samples(
        run: str, after: _After = 0, limit: _Limit = 100, waiting: _Waiting = False
    ) -> Response:
        return answer(
            await application.list_samples(run, after=after, limit=limit, waiting=waiting)
        )

    return routes
