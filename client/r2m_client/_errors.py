"""Everything this client raises on its own.

    R2MError
    ├── ConnectError (ConnectionError)      no answer: refused, reset, gone
    ├── DeadlineError (TimeoutError)        the call's time is over
    ├── ProtocolError                       an answer that is not this interface's (a proxy's page)
    ├── SamplesFailed                       raised by ScoreResult.raise_for_errors()
    ├── StreamFailed                        a score stream broke; lists what has no answer
    └── ServerError                         the server's own words: code, message, field, ...
        ├── InvalidRequest (ValueError)
        ├── SampleProblem (ValueError)      one sample's text or hidden states
        ├── NotFound (LookupError)
        ├── Conflict
        │   ├── RunExists
        │   ├── StepConflict
        │   ├── StepOutOfOrder
        │   ├── AlignConflict
        │   └── AliasMoved
        ├── Overloaded
        ├── Unavailable
        └── ServerDeadline (DeadlineError)

What cannot be serialized at all (a vector instead of a matrix, a dtype without a name on the wire)
is a plain ValueError, raised before anything is sent.
"""

# ruff: noqa: N818 - as in the standard library (LookupError, but StopIteration), the names of
# refusals say what happened; the bases end in Error.

from __future__ import annotations

from typing import TYPE_CHECKING

from r2m.errors import TABLE, Code

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from r2m_client._samples import Sample

# Exceptions cross process borders (Ray, multiprocessing), and unpickling calls the class with
# `args` alone: so every argument but the message has a default, and the rest travels in __dict__.


class R2MError(Exception):
    """Root of all errors of this client.

    Attributes:
        tried: how often and how long the call was tried, in words; empty after one attempt.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.tried = ""

    def __str__(self) -> str:
        return self._words() + (f" ({self.tried})" if self.tried else "")

    def _words(self) -> str:
        return str(self.args[0]) if self.args else ""


class ConnectError(R2MError, ConnectionError):
    """The server gave no answer.

    Attributes:
        maybe_sent: the request may have arrived, so what it asked for may have been done.
    """

    def __init__(self, message: str = "", *, maybe_sent: bool = True) -> None:
        super().__init__(message)
        self.maybe_sent = maybe_sent


class TLSError(ConnectError):
    """No connection that both sides trust: one speaks plain text, or refuses a certificate.

    It is not repeated: somebody has to change the URL or a certificate.
    """

    def __init__(self, message: str = "", *, maybe_sent: bool = False) -> None:
        super().__init__(message, maybe_sent=maybe_sent)


class DeadlineError(R2MError, TimeoutError):
    """The call did not end within its timeout; what it asked for may have been done."""


class ProtocolError(R2MError):
    """An answer that this interface does not know, with an excerpt of it.

    Attributes:
        status: HTTP status, where there was one.
        passing: the status is one that gateways answer while a server restarts (429, 502, 503,
            504): the call is repeated as after a broken connection.
        retry_after: seconds the gateway asked to wait, or None.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status: int | None = None,
        passing: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.passing = passing
        self.retry_after = retry_after


class ServerError(R2MError):
    """An error of the table in r2m.errors; also the fallback for codes of a newer server.

    Attributes:
        code: its name in the table.
        message: one sentence: what was wrong, what was expected.
        field: where in the request (`samples[3].feedback.shape`), or None.
        retryable: the very same request may succeed later.
        status: the code's HTTP status, over either transport; None for an unknown code that came
            over gRPC or with one sample.
        retry_after: seconds the server asked to wait, or None.
        request_id: by which the server's log knows the call, or None: of an answer that has none,
            or of one sample.
    """

    def __init__(
        self,
        message: str = "",
        *,
        code: str = "",
        field: str | None = None,
        retryable: bool = False,
        status: int | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.field = field
        self.retryable = retryable
        self.status = status
        self.retry_after = retry_after
        self.request_id = request_id

    def _words(self) -> str:
        where = f" (at {self.field})" if self.field else ""
        return f"{self.code}: {self.message}{where}"


class InvalidRequest(ServerError, ValueError):
    """The request as a whole is refused: its form, its size, its media type."""


class Unauthenticated(ServerError, PermissionError):
    """The call had no API key, or one that is unknown, expired or revoked."""


class Forbidden(ServerError, PermissionError):
    """The API key's scope is too small for the call, or it is bound to other runs."""


class SampleProblem(ServerError, ValueError):
    """One sample's text or hidden states cannot be used, or its reward is no number."""


class NotFound(ServerError, LookupError):
    """No such run, head, branch, alias or path; or a head whose files were let go."""


class Conflict(ServerError):
    """The request is well formed, but the run's state refuses it."""


class RunExists(Conflict):
    """A run of this name exists with other settings."""


class StepConflict(Conflict):
    """The step was answered for other content; after a resume, call rollback first."""


class StepOutOfOrder(Conflict):
    """Not the branch's next step."""


class AlignConflict(Conflict):
    """Another align committed first; the same request may be sent again (the client does)."""


class AliasMoved(Conflict):
    """The alias does not point where `expect` says."""


class Overloaded(ServerError):
    """The server is at its limits and refused the call before any work."""


class Unavailable(ServerError):
    """The server is starting or draining, or its storage or device failed."""


class ServerDeadline(ServerError, DeadlineError):
    """The server gave up because the call's deadline passed."""


class SamplesFailed(R2MError):
    """Some samples of a call got an error instead of a reward.

    Attributes:
        errors: each failed sample's error, by sample id.
    """

    def __init__(self, message: str = "", *, errors: Mapping[str, ServerError] | None = None):
        super().__init__(message)
        self.errors: dict[str, ServerError] = dict(errors or {})


class StreamFailed(R2MError):
    """A score stream is over before all its samples are answered; `__cause__` says why.

    Attributes:
        pending: the samples without an answer: score is pure, so send them again on a new stream.
    """

    def __init__(self, message: str = "", *, pending: Sequence[Sample] = ()) -> None:
        super().__init__(message)
        self.pending: tuple[Sample, ...] = tuple(pending)


CLASSES: dict[Code, type[ServerError]] = {
    Code.INVALID_REQUEST: InvalidRequest,
    Code.DUPLICATE_ID: InvalidRequest,
    Code.TOO_LARGE: InvalidRequest,
    Code.LENGTH_REQUIRED: InvalidRequest,
    Code.UNSUPPORTED_MEDIA: InvalidRequest,
    Code.METHOD_NOT_ALLOWED: InvalidRequest,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.FORBIDDEN: Forbidden,
    Code.NOT_FOUND: NotFound,
    Code.UNKNOWN_RUN: NotFound,
    Code.UNKNOWN_HEAD: NotFound,
    Code.HEAD_PRUNED: NotFound,
    Code.UNKNOWN_BRANCH: NotFound,
    Code.UNKNOWN_ALIAS: NotFound,
    Code.RUN_EXISTS: RunExists,
    Code.RUN_ARCHIVED: Conflict,
    Code.BACKBONE_MISMATCH: Conflict,
    Code.ALIAS_RESERVED: Conflict,
    Code.ALIAS_MOVED: AliasMoved,
    Code.STEP_CONFLICT: StepConflict,
    Code.STEP_OUT_OF_ORDER: StepOutOfOrder,
    Code.BRANCH_LEFT: Conflict,
    Code.ALIGN_CONFLICT: AlignConflict,
    Code.TEXT_EMPTY: SampleProblem,
    Code.TEXT_INVALID: SampleProblem,
    Code.TEXT_TOO_LONG: SampleProblem,
    Code.NO_CHAT_TEMPLATE: SampleProblem,
    Code.FEEDBACK_MISSING: SampleProblem,
    Code.FEEDBACK_UNEXPECTED: SampleProblem,
    Code.FEEDBACK_WIDTH: SampleProblem,
    Code.FEEDBACK_SHAPE: SampleProblem,
    Code.FEEDBACK_DTYPE: SampleProblem,
    Code.FEEDBACK_SIZE: SampleProblem,
    Code.FEEDBACK_ENCODING: SampleProblem,
    Code.FEEDBACK_CONVENTION: SampleProblem,
    Code.FEEDBACK_NOT_FINITE: SampleProblem,
    Code.STALE_CONTEXT: SampleProblem,
    Code.UNANSWERED: SampleProblem,
    Code.UNKNOWN_TICKET: NotFound,
    Code.REWARD_NOT_FINITE: SampleProblem,
    Code.NO_ANCHORS: NotFound,
    Code.UNKNOWN_ANCHOR: NotFound,
    Code.UNKNOWN_SAMPLE: NotFound,
    Code.LABEL_CONFLICT: Conflict,
    Code.OVERLOADED: Overloaded,
    Code.NOT_READY: Unavailable,
    Code.DEADLINE_EXCEEDED: ServerDeadline,
    Code.HEAD_DAMAGED: Unavailable,
    Code.STORAGE_FAILED: Unavailable,
    Code.COMPUTE_FAILED: Unavailable,
}


def server_error(
    body: Mapping[str, object],
    *,
    status: int | None = None,
    retry_after: float | None = None,
    request_id: str | None = None,
) -> ServerError:
    """The exception for an error's wire form `{"code", "message", "retryable", "field"?}`.

    Args:
        body: as in the interface; unknown keys are ignored.
        status: HTTP status of the answer it came in; the table's is taken where it is known.
        retry_after: seconds, where the answer asked for a pause.
        request_id: of the call, where the answer has it.
    """
    name = str(body.get("code") or "")
    try:
        code = Code(name)
    except ValueError:  # a newer server's
        kind, retryable = ServerError, False
    else:
        kind, row = CLASSES[code], TABLE[code]
        status, retryable = row.http, row.retryable
    stated, field = body.get("retryable"), body.get("field")
    return kind(
        str(body.get("message") or ""),
        code=name,
        field=str(field) if field else None,
        retryable=stated if isinstance(stated, bool) else retryable,
        status=status,
        retry_after=retry_after,
        request_id=request_id,
    )
