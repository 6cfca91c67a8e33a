"""The fake: which function answers which call, and failures on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from r2m.errors import TABLE, Code, Problem
from r2m_client._errors import ConnectError, server_error
from r2m_client._reading import read
from r2m_client._results import AlignProgress
from r2m_client.testing import _runs
from r2m_client.testing._align import align, reply_align
from r2m_client.testing._anchors import get_anchors, put_anchors
from r2m_client.testing._backbone import (
    Advice,
    AdviceOn,
    Backbone,
    CountTokens,
    Reward,
    Vanilla,
    Verdict,
    VerdictOf,
    count_words,
    known_advice,
    known_verdict,
)
from r2m_client.testing._changes import list_changes, update_run
from r2m_client.testing._client import AsyncFakeClient, FakeClient
from r2m_client.testing._evaluate import evaluate
from r2m_client.testing._labels import add_labels, list_samples
from r2m_client.testing._score import score
from r2m_client.testing._world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r2m_client._async_client import AsyncClient
    from r2m_client._calls import Call
    from r2m_client._client import Client
    from r2m_client._retry import Retry
    from r2m_client._samples import Tensor, WireDtype
    from r2m_client.testing._align_groups import Sorted

Handler = Callable[[World, dict[str, Any]], object]

# Each call's name in r2m.v1, its name in the clients, and what answers it. A call that a later
# version of the interface adds gets a row here.
ROUTES: dict[str, tuple[str, Handler]] = {
    "GetServer": ("server", _runs.server),
    "CreateRun": ("create_run", _runs.create_run),
    "ListRuns": ("runs", _runs.list_runs),
    "GetRun": ("run", _runs.get_run),
    "DeleteRun": ("archive_run", _runs.archive_run),
    "Score": ("score", score),
    "Align": ("align", align),
    "ReplyAlign": ("align", reply_align),
    "Evaluate": ("evaluate", evaluate),
    "UpdateRun": ("update_run", update_run),
    "ListChanges": ("changes", list_changes),
    "PutAnchors": ("put_anchors", put_anchors),
    "GetAnchors": ("anchors", get_anchors),
    "AddLabels": ("add_labels", add_labels),
    "ListSamples": ("samples", list_samples),
    "ListHeads": ("heads", _runs.list_heads),
    "GetHead": ("head", _runs.get_head),
    "GetHeadWeights": ("head_weights", _runs.head_weights),
    "SetAlias": ("set_alias", _runs.set_alias),
    "Rollback": ("rollback", _runs.rollback),
}
METHODS = frozenset(name for name, _ in ROUTES.values())


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One attempt of a call, as it arrived.

    Attributes:
        method: the client's method.
        request: the request as JSON; hidden states are there by dtype and shape.
        error: the code it was refused with, or None.
    """

    method: str
    request: Mapping[str, Any] = field(repr=False)
    error: str | None = None


@dataclass(slots=True)
class _Failure:
    """What the next calls meet: an error of the table, or (None) an answer that gets lost."""

    code: Code | None
    times: int
    method: str | None
    retry_after: float | None = None


class FakeServer:
    """An R2M server without models, for tests. `client()` and `async_client()` talk to it.

    Args:
        reward: (sample, head number) → the reward by that version. The sample is an
            `r2m_client.Sample` whose hidden_states are float32 [tokens, width], or None where its
            run takes none. Infinity or NaN become that sample's `reward_not_finite`; what it
            raises reaches the test.
        vanilla: sample → the frozen reward model's reward; None: that of `reward` by version 0.
        verdict: on every candidate: a word, or a function of the step and the groups that can be
            used (`r2m_client.Group`, samples as above).
        advice: what the audited gap says: a word (ok, warn, stop), or a function of the run's name.
        fingerprint: of the backbone. May be assigned to later: runs then answer
            backbone_mismatch.
        hidden_size: width of the backbone.
        max_length: tokens of prompt + response at most.
        count_tokens: of a text; words, unless given.

    Attributes:
        calls: every attempt of a call so far.

    Raises:
        ValueError: `verdict` or `advice` is a word that is none.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        vanilla: Vanilla | None = None,
        verdict: Verdict | VerdictOf = "accepted",
        advice: Advice | AdviceOn = "ok",
        fingerprint: str = "fa6e" * 16,
        hidden_size: int = 32,
        max_length: int = 4096,
        count_tokens: CountTokens = count_words,
    ) -> None:
        if not callable(verdict):
            known_verdict(verdict)
        if not callable(advice):
            known_advice(advice)
        self._world = World(
            Backbone(
                reward=reward,
                vanilla=vanilla,
                verdict=verdict,
                fingerprint=fingerprint,
                hidden_size=hidden_size,
                max_length=max_length,
                count_tokens=count_tokens,
                advice=advice,
            )
        )
        self._failures: list[_Failure] = []
        # Threads may share a client, and so a fake; a test's function may itself ask the fake.
        self._lock = threading.RLock()
        self.calls: list[RecordedCall] = []

    @property
    def fingerprint(self) -> str:
        """The backbone's."""
        return self._world.backbone.fingerprint

    @fingerprint.setter
    def fingerprint(self, fingerprint: str) -> None:
        self._world.backbone.fingerprint = fingerprint

    def client(
        self,
        *,
        timeout: float = 60.0,
        retries: int | Retry | None = None,
        wire_dtype: WireDtype = "bfloat16",
    ) -> Client:
        """A client of this fake; arguments as for `Client`. Its pauses take no time."""
        return FakeClient(self, timeout, retries, wire_dtype)

    def async_client(
        self,
        *,
        timeout: float = 60.0,
        retries: int | Retry | None = None,
        wire_dtype: WireDtype = "bfloat16",
    ) -> AsyncClient:
        """The same for asyncio."""
        return AsyncFakeClient(self, timeout, retries, wire_dtype)

    def fail_next(
        self,
        code: str,
        times: int = 1,
        *,
        method: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Answer the next attempts with an error, and do nothing else about them.

        Args:
            code: of docs/errors.md, `overloaded` for example. The client repeats what the table
                calls retryable, so `times` counts its repeats too.
            times: how many attempts.
            method: only those of this method of the client.
            retry_after: seconds that the answer asks to wait.

        Raises:
            ValueError: no such code or method, or `times` is below 1.
        """
        self._fail(_Failure(Code(code), times, method, retry_after))

    def lose_next(self, times: int = 1, *, method: str | None = None) -> None:
        """Carry out the next attempts, and break the connection before they are answered.

        Args:
            times: how many attempts.
            method: only those of this method of the client.

        Raises:
            ValueError: no such method, or `times` is below 1.
        """
        self._fail(_Failure(None, times, method))

    def _fail(self, failure: _Failure) -> None:
        if failure.times < 1:
            raise ValueError(f"times is {failure.times}, it is at least 1")
        if failure.method is not None and failure.method not in METHODS:
            raise ValueError(f"{failure.method!r} is not one of {', '.join(sorted(METHODS))}")
        with self._lock:
            self._failures.append(failure)

    def answer(self, call: Call[Any], body: bytes) -> object:
        """One attempt of a call; for the clients.

        Raises:
            R2MError: a ServerError as from a server, or a ConnectError on demand.
        """
        with self._lock:
            method, handler = ROUTES.get(call.rpc, (call.rpc, None))
            self._world.told = None
            failure = self._failure(method)
            error: str | None = None
            try:
                if failure is not None and failure.code is not None:
                    meaning = TABLE[failure.code].meaning
                    raise Problem(failure.code, f"asked for by the test: {meaning}")
                if handler is None:
                    raise Problem(Code.NOT_FOUND, f"the fake does not know the call {call.rpc}")
                answer = handler(self._world, _attached(_request(call, body), call.tensors))
            except Problem as problem:
                error = problem.code.value
                wait = None if failure is None else failure.retry_after
                raise server_error(problem.as_dict(), retry_after=wait) from None
            finally:
                self.calls.append(RecordedCall(method, _request(call, body), error))
            told = self._world.told
        if call.progress is not None and told is not None:
            # As over gRPC: the work is done whatever this raises, and a retry finds the answer.
            for progress in _progress(told):
                call.progress(progress)
        if failure is not None:
            raise ConnectError("the connection broke, as the test asked for")
        return answer

    def _failure(self, method: str) -> _Failure | None:
        for failure in self._failures:
            if failure.method in (None, method):
                failure.times -= 1
                if failure.times == 0:
                    self._failures.remove(failure)
                return failure
        return None


def _request(call: Call[Any], body: bytes) -> dict[str, Any]:
    return {**call.names, **(json.loads(body) if body else {})}


def _progress(told: Sorted) -> Iterator[AlignProgress]:
    """What an align says on its way: groups that never reach the device first, then one by one."""

    def said(done: int, skipped: list[dict[str, Any]]) -> AlignProgress:
        total = told.measured
        return read(AlignProgress, {"groups_done": done, "groups_total": total, "skipped": skipped})

    if told.unmeasured:
        yield said(0, told.unmeasured)
    for place in range(told.measured):
        skipped = told.skipped_at.get(place)
        yield said(place + 1, [] if skipped is None else [skipped])


def _attached(request: dict[str, Any], tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    """The request with every tensor in its sample's feedback."""
    groups: list[dict[str, Any]] = request.get("groups") or [request]
    samples = [sample for group in groups for sample in group.get("samples", ())]
    pairs = [*request.get("pairs", ()), *request.get("anchors", ())]
    samples += [pair[side] for pair in pairs for side in ("chosen", "rejected")]
    for tensor in tensors:
        samples[tensor.position]["feedback"]["data"] = tensor.value
    return request
