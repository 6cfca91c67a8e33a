"""The one check of who may call what, the same over both transports.

A call's key is looked at before its body is read or a byte is reserved: its scope, and where the
path names a run, that too. gRPC has the run in the message, so it is asked about once that is read.
Who calls is kept in a context variable, which each call has for itself.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from r2m.errors import Code, Problem
from r2m_service.application.about import caller, tell
from r2m_service.application.contract import NAME_PATTERN, RunList
from r2m_service.domain.access import Key, Scope, Standing, id_of
from r2m_service.domain.runs import REFERENCE


class Keys(Protocol):
    """The keys that the server knows."""

    def find(self, identity: str) -> Key | None:
        """The record of a key, by its id."""
        ...


@dataclass(frozen=True, slots=True)
class Operation:
    """A line of the table.

    Attributes:
        scope: what it takes; None: nothing, not even a key.
        grpc: its method.
        http: its routes, by name.
    """

    scope: Scope | None
    grpc: tuple[str, ...] = ()
    http: tuple[str, ...] = ()


_OURS = "/r2m.v1.RewardModelService/"
_HEALTH = "/grpc.health.v1.Health/"
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/"
_TRAINERS = (
    "openrlhf", "slime", "classify", "embeddings", "llamafactory", "verify", "seed_session",
    "aggregate_metrics", "reverify_mode", "models",
)  # fmt: skip

OPERATIONS: tuple[Operation, ...] = (
    # probes
    Operation(
        None, (f"{_HEALTH}Check", f"{_HEALTH}Watch"), ("livez", "readyz", "health", "health_of_run")
    ),
    # numbers of all runs, at the main address; at one of its own they need no key
    Operation(Scope.SCORE, (), ("metrics",)),
    # the live page's files, which hold nothing of any run: it asks for a key itself
    Operation(None, (), ("index", "file")),
    # what the interface is
    Operation(Scope.SCORE, (f"{_REFLECTION}ServerReflectionInfo",), ("openapi",)),
    # rewards, and looking
    Operation(Scope.SCORE, (f"{_OURS}GetServer",), ("server",)),
    Operation(Scope.SCORE, (f"{_OURS}Score", f"{_OURS}ScoreStream"), ("score", "score_run")),
    Operation(Scope.SCORE, (), (*_TRAINERS, *(f"{name}_of_run" for name in _TRAINERS))),
    Operation(Scope.SCORE, (), ("verify_of_rollout", "seed_session_of_rollout")),
    Operation(Scope.SCORE, (f"{_OURS}Evaluate",), ("evaluate",)),
    Operation(Scope.SCORE, (f"{_OURS}ListRuns",), ("list_runs",)),
    Operation(Scope.SCORE, (f"{_OURS}GetRun",), ("get_run",)),
    Operation(Scope.SCORE, (f"{_OURS}ListHeads",), ("list_heads",)),
    Operation(Scope.SCORE, (f"{_OURS}GetHead",), ("get_head",)),
    Operation(Scope.SCORE, (f"{_OURS}GetHeadWeights",), ("head_weights",)),
    Operation(Scope.SCORE, (f"{_OURS}ListChanges",), ("list_changes",)),
    Operation(Scope.SCORE, (f"{_OURS}GetAnchors",), ("get_anchors",)),
    # what a trainer does in the life of its run, and who brings labels
    Operation(Scope.ALIGN, (f"{_OURS}CreateRun",), ("create_run",)),
    Operation(Scope.ALIGN, (f"{_OURS}Align", f"{_OURS}AlignStream"), ("align",)),
    Operation(Scope.ALIGN, (f"{_OURS}ReplyAlign",), ("reply_align",)),
    Operation(Scope.ALIGN, (f"{_OURS}Rollback",), ("rollback",)),
    # but for `reference`: see require_alias
    Operation(Scope.ALIGN, (f"{_OURS}SetAlias",), ("set_alias",)),
    Operation(Scope.ALIGN, (f"{_OURS}AddLabels",), ("add_labels",)),
    Operation(Scope.ALIGN, (f"{_OURS}ListSamples",), ("list_samples",)),
    # what decides about the trainer
    Operation(Scope.ADMIN, (f"{_OURS}UpdateRun",), ("update_run",)),
    Operation(Scope.ADMIN, (f"{_OURS}DeleteRun",), ("archive_run",)),
    Operation(Scope.ADMIN, (f"{_OURS}PutAnchors",), ("put_anchors",)),
)

OF_METHOD = {name: one for one in OPERATIONS for name in one.grpc}
OF_ROUTE = {name: one for one in OPERATIONS for name in one.http}


class Gate:
    """Lets calls in by their key.

    Args:
        keys: those of the server; None: it is open to all.
        now: the time, with its zone.
    """

    def __init__(
        self, keys: Keys | None = None, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._keys = keys
        self._now = now

    def admit(self, operation: Operation | None, authorization: str | None) -> None:
        """Let a call in, and keep whose it is.

        Args:
            operation: its line of the table; None: it has none, and is refused.
            authorization: the header, or gRPC's metadata of that name.

        Raises:
            Problem: unauthenticated, forbidden.
        """
        caller.set(None)
        if self._keys is None or (operation is not None and operation.scope is None):
            return
        key = self._key(self._keys, authorization)
        if operation is None or operation.scope is None or not key.scope.covers(operation.scope):
            needed = operation.scope if operation and operation.scope else "no key's"
            raise Problem(
                Code.FORBIDDEN, f"the key has the scope {key.scope}, and this call takes {needed}"
            )
        caller.set(key)
        tell(key=key.id)

    def _key(self, keys: Keys, authorization: str | None) -> Key:
        text = _text(authorization)
        identity = id_of(text)
        key = keys.find(identity) if identity is not None else None
        if key is None or not key.matches(text):
            raise Problem(Code.UNAUTHENTICATED, "the API key is none of this server's")
        # Only who holds the whole key hears more of it.
        standing = key.standing(self._now())
        if standing is Standing.VALID:
            return key
        at = key.revoked_at if standing is Standing.REVOKED else key.expires_at
        raise Problem(Code.UNAUTHENTICATED, f"the API key {standing} at {at:%Y-%m-%dT%H:%M:%SZ}")


def _text(authorization: str | None) -> str:
    """The key in an Authorization header.

    Raises:
        Problem: unauthenticated.
    """
    if authorization is None:
        raise Problem(
            Code.UNAUTHENTICATED,
            "this server takes calls with an API key alone: send `Authorization: Bearer KEY`",
        )
    scheme, _, given = authorization.strip().partition(" ")
    if scheme.lower() == "bearer" and given.strip():
        return given.strip()
    if scheme.lower() == "basic":
        # Of a URL http://USER:KEY@HOST: some trainers let nobody set more than the URL.
        try:
            return base64.b64decode(given.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            pass
    raise Problem(
        Code.UNAUTHENTICATED, "the Authorization header is none: send `Authorization: Bearer KEY`"
    )


def require_run(run: str | None) -> None:
    """Refuse a caller whose key is bound to other runs; calls without a run are open to all.

    Raises:
        Problem: forbidden, whether or not there is such a run.
    """
    key = caller.get()
    if run and re.fullmatch(NAME_PATTERN, run):
        tell(run=run)  # anything else is no run's name: for all we know, it is a text
    if key is not None and run and not key.opens(run):
        raise Problem(
            Code.FORBIDDEN, "the key is bound to other runs than the one named here", field="run"
        )


def require_alias(alias: str) -> None:
    """Refuse a trainer that moves what it is measured against.

    Raises:
        Problem: forbidden.
    """
    key = caller.get()
    if key is not None and alias == REFERENCE and not key.scope.covers(Scope.ADMIN):
        raise Problem(
            Code.FORBIDDEN,
            f"the key has the scope {key.scope}, and moving {REFERENCE} takes {Scope.ADMIN}",
            field="alias",
        )


def visible(runs: RunList) -> RunList:
    """Of all runs those that the caller's key is not kept from."""
    key = caller.get()
    if key is None or key.runs is None:
        return runs
    return runs.model_copy(update={"runs": [one for one in runs.runs if key.opens(one.run)]})
