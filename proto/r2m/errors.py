"""The one error table: every code that the service can answer, with its HTTP and gRPC status.

Server, client and documentation share it. `retryable` says whether sending the very same request
again can succeed without anybody changing anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# A sample, an align and a whole call use the same codes; what differs is where they appear.


class Code(StrEnum):
    """Names of all errors. They are part of the interface: never rename one."""

    # the request as a whole
    INVALID_REQUEST = "invalid_request"
    DUPLICATE_ID = "duplicate_id"
    TOO_LARGE = "too_large"
    LENGTH_REQUIRED = "length_required"
    UNSUPPORTED_MEDIA = "unsupported_media"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    # who asks
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    # what it talks about
    UNKNOWN_RUN = "unknown_run"
    UNKNOWN_HEAD = "unknown_head"
    HEAD_PRUNED = "head_pruned"
    UNKNOWN_BRANCH = "unknown_branch"
    UNKNOWN_ALIAS = "unknown_alias"
    RUN_EXISTS = "run_exists"
    RUN_ARCHIVED = "run_archived"
    BACKBONE_MISMATCH = "backbone_mismatch"
    ALIAS_RESERVED = "alias_reserved"
    ALIAS_MOVED = "alias_moved"
    # align's clock
    STEP_CONFLICT = "step_conflict"
    STEP_OUT_OF_ORDER = "step_out_of_order"
    ALIGN_CONFLICT = "align_conflict"
    UNKNOWN_TICKET = "unknown_ticket"
    BRANCH_LEFT = "branch_left"
    # one sample
    TEXT_EMPTY = "text_empty"
    TEXT_INVALID = "text_invalid"
    TEXT_TOO_LONG = "text_too_long"
    NO_CHAT_TEMPLATE = "no_chat_template"
    FEEDBACK_MISSING = "feedback_missing"
    FEEDBACK_UNEXPECTED = "feedback_unexpected"
    FEEDBACK_WIDTH = "feedback_width"
    FEEDBACK_SHAPE = "feedback_shape"
    FEEDBACK_DTYPE = "feedback_dtype"
    FEEDBACK_SIZE = "feedback_size"
    FEEDBACK_ENCODING = "feedback_encoding"
    FEEDBACK_CONVENTION = "feedback_convention"
    FEEDBACK_NOT_FINITE = "feedback_not_finite"
    STALE_CONTEXT = "stale_context"
    UNANSWERED = "unanswered"
    REWARD_NOT_FINITE = "reward_not_finite"
    # outside labels and anchors
    NO_ANCHORS = "no_anchors"
    UNKNOWN_ANCHOR = "unknown_anchor"
    UNKNOWN_SAMPLE = "unknown_sample"
    LABEL_CONFLICT = "label_conflict"
    # the server
    OVERLOADED = "overloaded"
    NOT_READY = "not_ready"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    HEAD_DAMAGED = "head_damaged"
    STORAGE_FAILED = "storage_failed"
    COMPUTE_FAILED = "compute_failed"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    http: int
    """HTTP status of a call that fails with this code."""
    grpc: str
    """Name of the gRPC status (`grpc.StatusCode.<name>`)."""
    retryable: bool
    """The same request may succeed later, with nothing changed by the caller."""
    meaning: str
    """For the documentation: when it is answered, and what to do."""


TABLE: dict[Code, Row] = {
    Code.INVALID_REQUEST: Row(
        400,
        "INVALID_ARGUMENT",
        False,
        "The request does not have the documented form; `field` says where.",
    ),
    Code.DUPLICATE_ID: Row(
        400,
        "INVALID_ARGUMENT",
        False,
        "Two samples (or two groups) of one call carry the same id.",
    ),
    Code.TOO_LARGE: Row(
        413,
        "RESOURCE_EXHAUSTED",
        False,
        "The request is larger than this server takes; send fewer samples a call.",
    ),
    Code.LENGTH_REQUIRED: Row(
        411,
        "INVALID_ARGUMENT",
        False,
        "The HTTP body came without a Content-Length (chunked): nobody could reserve its memory.",
    ),
    Code.UNSUPPORTED_MEDIA: Row(
        415, "INVALID_ARGUMENT", False, "The body is neither JSON nor safetensors."
    ),
    Code.NOT_FOUND: Row(404, "UNIMPLEMENTED", False, "There is no such path or method."),
    Code.METHOD_NOT_ALLOWED: Row(
        405, "UNIMPLEMENTED", False, "The path exists, but not with this HTTP method."
    ),
    Code.UNAUTHENTICATED: Row(
        401,
        "UNAUTHENTICATED",
        False,
        "The call has no API key, or one that is unknown, expired or revoked (docs/access.md).",
    ),
    Code.FORBIDDEN: Row(
        403,
        "PERMISSION_DENIED",
        False,
        "The API key is good, and its scope is too small for this call, or it is bound to other "
        "runs.",
    ),
    Code.UNKNOWN_RUN: Row(404, "NOT_FOUND", False, "No run has this name; create it first."),
    Code.UNKNOWN_HEAD: Row(404, "NOT_FOUND", False, "The run has no head of this number."),
    Code.HEAD_PRUNED: Row(
        410,
        "NOT_FOUND",
        False,
        "The head's files were let go (docs/operations.md says what is kept): it can be looked at, "
        "not scored with. For rollback: its optimizer state was; the message names heads that can "
        "be gone back to.",
    ),
    Code.UNKNOWN_BRANCH: Row(404, "NOT_FOUND", False, "The run has no branch of this id."),
    Code.UNKNOWN_ALIAS: Row(404, "NOT_FOUND", False, "The run has no alias of this name."),
    Code.RUN_EXISTS: Row(
        409,
        "ALREADY_EXISTS",
        False,
        "A run of this name exists with other settings; the message names the first difference.",
    ),
    Code.RUN_ARCHIVED: Row(
        409, "FAILED_PRECONDITION", False, "The run was archived: it can be read, nothing else."
    ),
    Code.BACKBONE_MISMATCH: Row(
        409,
        "FAILED_PRECONDITION",
        False,
        "The run was made on another backbone than this server's: it can only be read here.",
    ),
    Code.ALIAS_RESERVED: Row(
        409, "FAILED_PRECONDITION", False, "live, previous and candidate are moved by the server."
    ),
    Code.ALIAS_MOVED: Row(
        409, "ABORTED", False, "The alias does not point where `expect` says: look again, decide."
    ),
    Code.STEP_CONFLICT: Row(
        409,
        "ALREADY_EXISTS",
        False,
        "This step was answered for other content. A trainer that resumed from an older "
        "checkpoint opens a branch with rollback first.",
    ),
    Code.STEP_OUT_OF_ORDER: Row(
        409, "FAILED_PRECONDITION", False, "Not the branch's next step; the message names it."
    ),
    Code.ALIGN_CONFLICT: Row(
        409, "ABORTED", True, "Another align committed first: send the same request again."
    ),
    Code.UNKNOWN_TICKET: Row(
        404,
        "NOT_FOUND",
        False,
        "No align waits for replies to this ticket (answered, timed out, or the server restarted): "
        "send the align again; a step that was answered gets its answer.",
    ),
    Code.BRANCH_LEFT: Row(
        409,
        "FAILED_PRECONDITION",
        False,
        "A rollback has left this branch: it answers its old steps and takes no new ones.",
    ),
    Code.TEXT_EMPTY: Row(
        400,
        "INVALID_ARGUMENT",
        False,
        "The sample has no text, in chat no prompt, or no response: an empty one has a reward only "
        "where the run's `empty_response` (without a run: `--empty-response`) is `score`.",
    ),
    Code.TEXT_INVALID: Row(
        400,
        "INVALID_ARGUMENT",
        False,
        "The text cannot be encoded (for example lone surrogates): this sample has no reward, the "
        "call's others have theirs.",
    ),
    Code.TEXT_TOO_LONG: Row(
        400, "INVALID_ARGUMENT", False, "More tokens than the backbone's maximum length."
    ),
    Code.NO_CHAT_TEMPLATE: Row(
        400,
        "INVALID_ARGUMENT",
        False,
        'The backbone\'s tokenizer has no chat template: send `"format": "raw"`.',
    ),
    Code.FEEDBACK_MISSING: Row(
        400,
        "INVALID_ARGUMENT",
        False,
        "The run attends to the policy's hidden states and this sample has none.",
    ),
    Code.FEEDBACK_UNEXPECTED: Row(
        400,
        "INVALID_ARGUMENT",
        False,
        "Hidden states were sent where none are used (no run, or feedback `backbone` / `none`).",
    ),
    Code.FEEDBACK_WIDTH: Row(
        400, "INVALID_ARGUMENT", False, "The hidden states are not as wide as the run's policy."
    ),
    Code.FEEDBACK_SHAPE: Row(
        400, "INVALID_ARGUMENT", False, "The hidden states are not of shape [tokens >= 1, width]."
    ),
    Code.FEEDBACK_DTYPE: Row(
        400, "INVALID_ARGUMENT", False, "The dtype is none of bfloat16, float16, float32, int8."
    ),
    Code.FEEDBACK_SIZE: Row(
        400, "INVALID_ARGUMENT", False, "The byte count does not fit the dtype and the shape."
    ),
    Code.FEEDBACK_ENCODING: Row(
        400, "INVALID_ARGUMENT", False, "`data` is not valid base64 (JSON bodies only)."
    ),
    Code.FEEDBACK_CONVENTION: Row(
        400,
        "INVALID_ARGUMENT",
        False,
        "The sample states another hidden-state convention than its run.",
    ),
    Code.FEEDBACK_NOT_FINITE: Row(
        400,
        "INVALID_ARGUMENT",
        False,
        "The hidden states hold NaN or infinity; of int8: a scale is such, or negative.",
    ),
    Code.STALE_CONTEXT: Row(
        409,
        "FAILED_PRECONDITION",
        False,
        "Split attention: the number was computed with another head's u and v; the right ones come "
        "with this answer.",
    ),
    Code.UNANSWERED: Row(
        504,
        "DEADLINE_EXCEEDED",
        False,
        "Split attention: the trainer was asked about this sample's hidden states and did not "
        "answer usably in time.",
    ),
    Code.REWARD_NOT_FINITE: Row(
        422, "OUT_OF_RANGE", False, "The reward of this sample overflowed: there is no number."
    ),
    Code.NO_ANCHORS: Row(404, "NOT_FOUND", False, "The run has no anchor set; put one first."),
    Code.UNKNOWN_ANCHOR: Row(
        404, "NOT_FOUND", False, "The run's anchor set has no pair of this id; the others judge."
    ),
    Code.UNKNOWN_SAMPLE: Row(
        404,
        "NOT_FOUND",
        False,
        "No sample of this id waits for a label: score did not mark it (`audit`), or it was so "
        "long ago that it is not kept any more.",
    ),
    Code.LABEL_CONFLICT: Row(
        409, "ALREADY_EXISTS", False, "The sample has another grade already; the first one stays."
    ),
    Code.OVERLOADED: Row(
        429, "RESOURCE_EXHAUSTED", True, "The server is at its limits: wait, then retry."
    ),
    Code.NOT_READY: Row(503, "UNAVAILABLE", True, "The server is starting or draining."),
    Code.DEADLINE_EXCEEDED: Row(
        504, "DEADLINE_EXCEEDED", True, "The call's deadline passed before the work was done."
    ),
    Code.HEAD_DAMAGED: Row(
        503, "DATA_LOSS", False, "A stored head does not match its hash; the operator must act."
    ),
    Code.STORAGE_FAILED: Row(
        503, "UNAVAILABLE", True, "The registry could not be read or written (disk, database)."
    ),
    Code.COMPUTE_FAILED: Row(
        503, "UNAVAILABLE", True, "The device failed on this batch; other batches go on."
    ),
}


class Problem(Exception):  # noqa: N818 - one of the table's problems, not always an error
    """An error of the table, with a sentence for a person.

    Attributes:
        code: its name in the table.
        message: one sentence: what was wrong, what was expected.
        field: where in the request (`samples[3].feedback.shape`), where that makes sense.
    """

    def __init__(self, code: Code, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field

    @property
    def row(self) -> Row:
        """This code's line of the table."""
        return TABLE[self.code]

    def as_dict(self) -> dict[str, object]:
        """The wire form, the same in HTTP bodies, gRPC details and per-sample errors."""
        body: dict[str, object] = {
            "code": self.code.value,
            "message": self.message,
            "retryable": self.row.retryable,
        }
        if self.field is not None:
            body["field"] = self.field
        return body
