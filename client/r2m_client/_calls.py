"""Every call of the interface, described once for four transports; no I/O here.

A description says how the call looks in both forms of the interface (path and JSON body; rpc and
message, whose fields are the body's plus the names that HTTP has in its path), which tensors go
along, and how to read the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote

from r2m_client._errors import ProtocolError
from r2m_client._reading import finite, read, read_list
from r2m_client._results import (
    AliasInfo,
    AlignPending,
    AlignProgress,
    AlignResult,
    Change,
    Evaluation,
    HeadInfo,
    RunInfo,
    ScoreResult,
    ServerInfo,
)
from r2m_client._samples import (
    AnchorStates,
    Group,
    Kept,
    Pair,
    Sample,
    SampleWriter,
    Tensor,
    WireDtype,
)

T = TypeVar("T")
Progress = Callable[[AlignProgress], object]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call.

    Attributes:
        rpc: method of r2m.v1.RewardModelService.
        verb, path: of the HTTP route.
        read: the result, from the answer's JSON (its bytes if `download`).
        names: message fields that HTTP has in its path.
        body: the JSON body, and the message's other fields; None: HTTP sends no body.
        tensors: hidden states of the body's samples.
        repeatable: doing it twice does no harm, so it is repeated after an ambiguous failure.
        download: the answer is a file, not JSON.
        progress: told while an align works, over gRPC.
    """

    rpc: str
    verb: str
    path: str
    read: Callable[[Any], T]
    names: Mapping[str, object] = field(default_factory=dict[str, object])
    body: Mapping[str, object] | None = None
    tensors: tuple[Tensor, ...] = ()
    repeatable: bool = True
    download: bool = False
    progress: Progress | None = None

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all hidden states."""
        return sum(len(tensor.value.data) for tensor in self.tensors)


def server() -> Call[ServerInfo]:
    """What the server holds."""
    return Call("GetServer", "GET", "/v1/server", lambda data: read(ServerInfo, data))


def create_run(
    run: str,
    *,
    policy_hidden_size: int | None,
    hidden_state: str,
    last_token: bool,
    feedback: str,
    method: Mapping[str, object] | None,
    truncation: str,
    empty_response: str | None,
) -> Call[RunInfo]:
    """A new run; the same again answers with the run as it is."""
    body: dict[str, object] = {"run": run, "feedback": feedback}
    if truncation != "none":
        body["truncation"] = truncation
    if empty_response is not None:
        body["empty_response"] = empty_response
    if policy_hidden_size is not None:
        body["policy"] = {
            "hidden_size": index(policy_hidden_size),
            "hidden_state": hidden_state,
            "last_token": last_token,
        }
    if method is not None:
        body["method"] = dict(method)
    return Call("CreateRun", "POST", "/v1/runs", _run_info, body=body)


def runs() -> Call[list[RunInfo]]:
    """All runs."""
    return Call("ListRuns", "GET", "/v1/runs", lambda data: read_list(RunInfo, data, "runs"))


def run(name: str) -> Call[RunInfo]:
    """One run."""
    return Call("GetRun", "GET", path_of(name), _run_info, {"run": name})


def update_run(name: str, method: Mapping[str, object], *, reason: str | None) -> Call[RunInfo]:
    """Change settings; the same again changes nothing more."""
    body: dict[str, object] = {"method": dict(method)}
    if reason is not None:
        body["reason"] = reason
    return Call("UpdateRun", "PATCH", path_of(name), _run_info, {"run": name}, body)


def changes(name: str) -> Call[list[Change]]:
    """A run's audit trail."""
    return Call(
        "ListChanges",
        "GET",
        path_of(name, "changes"),
        lambda data: read_list(Change, data, "changes"),
        {"run": name},
    )


def evaluate(
    run: str,
    pairs: Iterable[Pair],
    *,
    heads: Iterable[int | str],
    margins: bool,
    wire_dtype: WireDtype,
) -> Call[Evaluation]:
    """Accuracies of heads on preference pairs."""
    writer = SampleWriter(wire_dtype)
    body: dict[str, object] = {
        "pairs": writer.pairs(pairs),
        "heads": [_head(head) for head in heads],
    }
    if margins:
        body["margins"] = True
    return Call(
        "Evaluate",
        "POST",
        path_of(run, "evaluate"),
        lambda data: read(Evaluation, data),
        {"run": run},
        body,
        tuple(writer.tensors),
    )


def archive_run(name: str) -> Call[RunInfo]:
    """Make a run read-only."""
    return Call("DeleteRun", "DELETE", path_of(name), _run_info, {"run": name})


def score(
    samples: Iterable[Sample],
    *,
    run: str | None,
    head: int | str,
    step: int | None = None,
    branch: str | None = None,
    wire_dtype: WireDtype,
    kept: Mapping[str, Kept] | None = None,
) -> Call[ScoreResult]:
    """Rewards of samples, in their order."""
    if run is None and (head != "live" or step is not None or branch is not None):
        raise ValueError(f"head {head!r} of which run? Without a run there are no heads")
    writer = SampleWriter(wire_dtype, kept)
    written = writer.samples(samples)
    body: dict[str, object] = {"samples": written}
    ids = [sample["id"] for sample in written]

    def result(data: object) -> ScoreResult:
        return _checked(read(ScoreResult, data), ids)

    if run is None:
        path, names = "/v1/score", {}
    else:
        path, names = path_of(run, "score"), {"run": run}
        body["head"] = _head(head)
        if step is not None:
            body["step"] = index(step)
        if branch is not None:
            body["branch"] = branch
    return Call("Score", "POST", path, result, names, body, tuple(writer.tensors))


def align(
    run: str,
    *,
    step: int,
    groups: Iterable[Group],
    branch: str | None,
    anchors: Iterable[AnchorStates] = (),
    progress: Progress | None,
    wire_dtype: WireDtype,
    kept: Mapping[str, Kept] | None = None,
) -> Call[AlignResult]:
    """One update; the server answers (run, branch, step) once, so it may be sent again.

    Of states that are `kept` there may be questions first: the result is an AlignPending then.
    """
    writer = SampleWriter(wire_dtype, kept)
    body: dict[str, object] = {"step": index(step), "groups": writer.groups(groups)}
    states = writer.anchors(anchors)
    if states:
        body["anchors"] = states
    if branch is not None:
        body["branch"] = branch
    return Call(
        "Align",
        "POST",
        path_of(run, "align"),
        _aligned if kept is not None else lambda data: read(AlignResult, data),
        {"run": run},
        body,
        tuple(writer.tensors),
        progress=progress,
    )


def reply_align(
    run: str, ticket: str, replies: list[dict[str, object]]
) -> Call[AlignResult | AlignPending]:
    """Answer what an align asked; a second time is `unknown_ticket`, which says so."""
    return Call(
        "ReplyAlign",
        "POST",
        path_of(run, "align", ticket),
        _aligned,
        {"run": run, "ticket": ticket},
        {"replies": replies},
    )


def _aligned(data: object) -> Any:
    if isinstance(data, Mapping) and data.get("ticket"):
        return read(AlignPending, cast("object", data))
    return read(AlignResult, data)


def heads(run: str) -> Call[list[HeadInfo]]:
    """All versions of a run, by number."""
    return Call(
        "ListHeads",
        "GET",
        path_of(run, "heads"),
        lambda data: read_list(HeadInfo, data, "heads"),
        {"run": run},
    )


def head(run: str, head: int | str) -> Call[HeadInfo]:
    """One version, by number or alias."""
    return Call(
        "GetHead",
        "GET",
        path_of(run, "heads", _head(head)),
        lambda data: read(HeadInfo, data),
        {"run": run, "head": _head(head)},
    )


def head_weights(run: str, head: int | str) -> Call[bytes]:
    """A version's safetensors file."""
    return Call(
        "GetHeadWeights",
        "GET",
        path_of(run, "heads", _head(head), "weights"),
        _weights,
        {"run": run, "head": _head(head)},
        download=True,
    )


def set_alias(run: str, alias: str, head: int, *, expect: int | None) -> Call[AliasInfo]:
    """Move an alias; with `expect` a repeat could meet its own first move, so there is none."""
    body: dict[str, object] = {"head": index(head)}
    if expect is not None:
        body["expect"] = index(expect)
    return Call(
        "SetAlias",
        "PUT",
        path_of(run, "aliases", alias),
        lambda data: read(AliasInfo, data),
        {"run": run, "alias": alias},
        body,
        repeatable=expect is None,
    )


def rollback(
    run: str,
    *,
    to: int | None,
    to_step: int | None,
    branch: str | None,
    reason: str | None,
) -> Call[RunInfo]:
    """Go back, on a new branch; every call opens one, so it is not repeated in doubt."""
    body: dict[str, object] = {
        key: value
        for key, value in (
            ("to", None if to is None else index(to)),
            ("to_step", None if to_step is None else index(to_step)),
            ("branch", branch),
            ("reason", reason),
        )
        if value is not None
    }
    return Call(
        "Rollback",
        "POST",
        path_of(run, "rollback"),
        _run_info,
        {"run": run},
        body,
        repeatable=False,
    )


def _run_info(data: object) -> RunInfo:
    return read(RunInfo, data)


def _weights(data: bytes) -> bytes:
    # A gateway's page with status 200 would otherwise be saved as a head.
    if not (data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8):
        raise ProtocolError(f"the head's file is no safetensors file: it starts {data[:40]!r}")
    return data


def _head(head: int | str) -> str:
    return head if isinstance(head, str) else str(index(head))


def path_of(run: str, *rest: str) -> str:
    """The path of a run, and of what belongs to it.

    Raises:
        ValueError: a name that would be another route.
    """
    # An empty name or a dot segment would silently be another route: `/v1/runs/../score` is the
    # vanilla route, and its rewards would look like the run's.
    for segment in (run, *rest):
        if segment in ("", ".", ".."):
            raise ValueError(f"{segment!r} cannot be the name of a run, a head or an alias")
    return "/".join(("/v1/runs", *(quote(segment, safe="") for segment in (run, *rest))))


def _checked(result: ScoreResult, ids: list[object]) -> ScoreResult:
    # A reward at another sample's place, or a NaN, would go through a trainer unnoticed.
    if [score.id for score in result.scores] != ids:
        raise ProtocolError(
            f"asked for {len(ids)} samples, got {len(result.scores)} scores that are not theirs, "
            "one each, in order"
        )
    for score in result.scores:
        finite(score)
    return result
