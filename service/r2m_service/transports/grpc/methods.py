"""The unary methods: which message, which use case, which answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from r2m.v1 import r2m_pb2 as pb
from r2m_service.application.contract import (
    AliasRequest,
    AlignRequest,
    AnchorsRequest,
    Answer,
    CreateRunRequest,
    EvaluateRequest,
    LabelsRequest,
    ReplyAlignRequest,
    RollbackRequest,
    ScoreRequest,
    UpdateRunRequest,
    VanillaRequest,
)
from r2m_service.application.parsing import parse
from r2m_service.transports.access import require_alias, visible
from r2m_service.transports.interface import Application

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unary:
    """One method: its messages, and what happens between them."""

    request: type[Message]
    answer: type[Message]
    call: Callable[[Application, Body], Awaitable[Answer]]


async def _server(app: Application, body: Body) -> Answer:
    return app.server()


async def _score(app: Application, body: Body) -> Answer:
    run, request = score_request(body)
    app.require_room(run)
    return await app.score(run, request)


def score_request(body: Body) -> tuple[str | None, ScoreRequest | VanillaRequest]:
    """The run of a ScoreRequest, or None, and the request that goes with it.

    Raises:
        Problem: invalid_request.
    """
    run = body.pop("run")
    if run:
        return run, parse(ScoreRequest, body)
    if not body["head"]:  # vanilla scoring has no head; a named one is refused below
        del body["head"]
    return None, parse(VanillaRequest, body)


async def _align(app: Application, body: Body) -> Answer:
    run = body.pop("run")
    return await app.align(run, parse(AlignRequest, body))


async def _reply_align(app: Application, body: Body) -> Answer:
    run, ticket = body.pop("run"), body.pop("ticket")
    return await app.reply_align(run, ticket, parse(ReplyAlignRequest, body))


async def _create_run(app: Application, body: Body) -> Answer:
    run, _ = await app.create_run(parse(CreateRunRequest, body))
    return run


async def _list_runs(app: Application, body: Body) -> Answer:
    return visible(await app.list_runs())


async def _get_run(app: Application, body: Body) -> Answer:
    return await app.get_run(body["run"])


async def _delete_run(app: Application, body: Body) -> Answer:
    return await app.archive_run(body["run"])


async def _list_heads(app: Application, body: Body) -> Answer:
    return await app.list_heads(body["run"])


async def _get_head(app: Application, body: Body) -> Answer:
    return await app.get_head(body["run"], body["head"])


async def _set_alias(app: Application, body: Body) -> Answer:
    run, alias = body.pop("run"), body.pop("alias")
    require_alias(alias)
    return await app.set_alias(run, alias, parse(AliasRequest, body))


async def _rollback(app: Application, body: Body) -> Answer:
    run = body.pop("run")
    return await app.rollback(run, parse(RollbackRequest, body))


async def _evaluate(app: Application, body: Body) -> Answer:
    run = body.pop("run")
    app.require_room(run)
    return await app.evaluate(run, parse(EvaluateRequest, body))


async def _update_run(app: Application, body: Body) -> Answer:
    run = body.pop("run")
    return await app.update_run(run, parse(UpdateRunRequest, body))


async def _list_changes(app: Application, body: Body) -> Answer:
    return await app.list_changes(body["run"])


async def _put_anchors(app: Application, body: Body) -> Answer:
    run = body.pop("run")
    return await app.put_anchors(run, parse(AnchorsRequest, body))


async def _get_anchors(app: Application, body: Body) -> Answer:
    return await app.get_anchors(body["run"])


async def _add_labels(app: Application, body: Body) -> Answer:
    run = body.pop("run")
    return await app.add_labels(run, parse(LabelsRequest, body))


async def _list_samples(app: Application, body: Body) -> Answer:
    return await app.list_samples(body.pop("run"), **body)


UNARY: dict[str, Unary] = {
    "GetServer": Unary(pb.GetServerRequest, pb.GetServerResponse, _server),
    "CreateRun": Unary(pb.CreateRunRequest, pb.Run, _create_run),
    "ListRuns": Unary(pb.ListRunsRequest, pb.ListRunsResponse, _list_runs),
    "GetRun": Unary(pb.GetRunRequest, pb.Run, _get_run),
    "DeleteRun": Unary(pb.DeleteRunRequest, pb.Run, _delete_run),
    "Score": Unary(pb.ScoreRequest, pb.ScoreResponse, _score),
    "Align": Unary(pb.AlignRequest, pb.AlignResponse, _align),
    "ReplyAlign": Unary(pb.ReplyAlignRequest, pb.AlignResponse, _reply_align),
    "ListHeads": Unary(pb.ListHeadsRequest, pb.ListHeadsResponse, _list_heads),
    "GetHead": Unary(pb.GetHeadRequest, pb.Head, _get_head),
    "SetAlias": Unary(pb.SetAliasRequest, pb.Alias, _set_alias),
    "Rollback": Unary(pb.RollbackRequest, pb.Run, _rollback),
    "Evaluate": Unary(pb.EvaluateRequest, pb.EvaluateResponse, _evaluate),
    "UpdateRun": Unary(pb.UpdateRunRequest, pb.Run, _update_run),
    "PutAnchors": Unary(pb.PutAnchorsRequest, pb.Anchors, _put_anchors),
    "GetAnchors": Unary(pb.GetAnchorsRequest, pb.Anchors, _get_anchors),
    "AddLabels": Unary(pb.AddLabelsRequest, pb.AddLabelsResponse, _add_labels),
    "ListSamples": Unary(pb.ListSamplesRequest, pb.ListSamplesResponse, _list_samples),
    "ListChanges": Unary(pb.ListChangesRequest, pb.ListChangesResponse, _list_changes),
}
