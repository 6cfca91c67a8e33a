"""Routes of score and align."""

# No postponed annotations here: FastAPI reads them, and must find the types.

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import model_validator
from starlette.requests import Request
from starlette.responses import Response

from r2m.errors import Code
from r2m_service.application.contract import (
    AlignAnswer,
    AlignPending,
    AlignRequest,
    EvaluateAnswer,
    EvaluateRequest,
    ReplyAlignRequest,
    ScoreAnswer,
    ScoreRequest,
    VanillaRequest,
)
from r2m_service.application.timings import Timings, timed
from r2m_service.transports.http.answers import answer
from r2m_service.transports.http.body import Intake
from r2m_service.transports.http.call import call, while_connected
from r2m_service.transports.http.docs import BODY, OPEN_RUN, operation
from r2m_service.transports.interface import Application

PAIRS = (
    "pairs of texts, as vLLM and SGLang score them, are not served: a reward model reads one text, "
    "a prompt with its response. POST /v1/score takes `samples`, POST /classify takes `input`"
)
_OF_PAIRS = frozenset(
    ("text_1", "text_2", "data_1", "data_2", "query", "queries", "documents", "items")
)


class _VanillaBody(VanillaRequest):
    """A request of ours, on a path where other servers take pairs of texts."""

    @model_validator(mode="before")
    @classmethod
    def _no_pairs(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "samples" not in value and _OF_PAIRS & value.keys():
            raise ValueError(PAIRS)
        return value


def scoring(application: Application, intake: Intake) -> APIRouter:
    """Rewards and updates: the routes that take hidden states."""
    routes = APIRouter(tags=["score and align"])

    @routes.post(
        "/v1/score",
        **operation(
            "Rewards by the frozen reward model alone",
            answer=ScoreAnswer,
            request=VanillaRequest,
            tensors=True,
            codes=(*BODY, Code.DUPLICATE_ID),
        ),
    )
    async def score(request: Request) -> Response:
        application.require_room(None)
        async with (
            call(request) as spent,
            intake.message(request, _VanillaBody, tensors=True) as message,
        ):
            found = await while_connected(request, application.score(None, message))
            return answer(found, spent=spent)

    @routes.post(
        "/v1/runs/{run}/score",
        **operation(
            "Rewards by a head of a run",
            answer=ScoreAnswer,
            request=ScoreRequest,
            tensors=True,
            codes=(
                *BODY,
                *OPEN_RUN,
                Code.DUPLICATE_ID,
                Code.UNKNOWN_HEAD,
                Code.HEAD_PRUNED,
                Code.UNKNOWN_ALIAS,
                Code.HEAD_DAMAGED,
            ),
        ),
    )
    async def score_run(run: str, request: Request) -> Response:
        application.require_room(run)
        async with (
            call(request) as spent,
            intake.message(request, ScoreRequest, tensors=True) as message,
        ):
            found = await while_connected(request, application.score(run, message))
            return answer(found, spent=spent)

    @routes.post(
        "/v1/runs/{run}/align",
        **operation(
            "One update of a run's head, exactly once for each step",
            answer=AlignAnswer,
            also={202: AlignPending},
            request=AlignRequest,
            tensors=True,
            codes=(
                *BODY,
                *OPEN_RUN,
                Code.DUPLICATE_ID,
                Code.UNKNOWN_BRANCH,
                Code.STEP_CONFLICT,
                Code.STEP_OUT_OF_ORDER,
                Code.ALIGN_CONFLICT,
            ),
        ),
    )
    async def align(run: str, request: Request) -> Response:
        # Not given up when the client goes or its time is over: its retry then finds the answer.
        with timed() as spent:
            async with intake.message(request, AlignRequest, tensors=True) as message:
                return _aligned(await application.align(run, message), spent)

    @routes.post(
        "/v1/runs/{run}/align/{ticket}",
        **operation(
            "Go on with an align that asked about hidden states which stay with the trainer",
            answer=AlignAnswer,
            also={202: AlignPending},
            request=ReplyAlignRequest,
            codes=(*BODY, *OPEN_RUN, Code.UNKNOWN_TICKET, Code.ALIGN_CONFLICT),
        ),
    )
    async def reply_align(run: str, ticket: str, request: Request) -> Response:
        with timed() as spent:
            async with intake.message(request, ReplyAlignRequest) as message:
                return _aligned(await application.reply_align(run, ticket, message), spent)

    @routes.post(
        "/v1/runs/{run}/evaluate",
        **operation(
            "Accuracy of one or more heads on preference pairs, with intervals",
            answer=EvaluateAnswer,
            request=EvaluateRequest,
            tensors=True,
            codes=(
                *BODY,
                *OPEN_RUN,
                Code.DUPLICATE_ID,
                Code.UNKNOWN_HEAD,
                Code.HEAD_PRUNED,
                Code.UNKNOWN_ALIAS,
                Code.HEAD_DAMAGED,
            ),
        ),
    )
    async def evaluate(run: str, request: Request) -> Response:
        application.require_room(run)
        async with (
            call(request) as spent,
            intake.message(request, EvaluateRequest, tensors=True) as message,
        ):
            found = await while_connected(request, application.evaluate(run, message))
            return answer(found, spent=spent)

    return routes


def _aligned(value: AlignAnswer | AlignPending, spent: Timings) -> Response:
    return answer(value, status=202 if isinstance(value, AlignPending) else 200, spent=spent)
