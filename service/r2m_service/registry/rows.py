"""Between the domain's dataclasses and table rows (as mappings: `row.t` is a method of rows).

Settings are stored resolved: every key is there, so that a later version's defaults cannot change
a run that exists. Reading therefore asks for exactly the keys that the dataclass has; a version
that adds one brings a migration that fills it in.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_type_hints

from r2m.errors import Code, Problem
from r2m_service.domain.method import MethodSettings
from r2m_service.domain.runs import BlobRef, Branch, Change, Head, Policy, Run, TextRules

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from sqlalchemy import RowMapping

    _T = TypeVar("_T", bound=DataclassInstance)


def settings_to_json(settings: DataclassInstance) -> str:
    """A dataclass of numbers, strings and further dataclasses, as JSON."""
    text = to_json(asdict(settings))
    # A field of a type that JSON does not give back (a tuple, a union of dataclasses) would be
    # noticed when the run is read, too late.
    assert settings_from_json(type(settings), text) == settings
    return text


@lru_cache(maxsize=1024)
def settings_from_json(kind: type[_T], text: str) -> _T:
    """What `settings_to_json` was given. It cannot be changed: every score reads it, parsed once.

    Raises:
        Problem: storage_failed, where the text is not a whole `kind`.
    """
    try:
        return _read(kind, json.loads(text))
    except (TypeError, ValueError) as error:
        raise unreadable(kind.__name__) from error


def _read(kind: type[_T], stored: object) -> _T:
    names = {field.name for field in fields(kind)}
    if not isinstance(stored, dict):
        raise TypeError(f"{kind.__name__} is stored as an object")
    values = cast("dict[str, Any]", stored)
    if values.keys() != names:
        raise ValueError(f"{kind.__name__}: keys differ in {sorted(values.keys() ^ names)}")
    hints = get_type_hints(kind)  # slow, and the reason for the cache above
    return kind(
        **{
            name: _read(hints[name], value) if is_dataclass(hints[name]) else value
            for name, value in values.items()
        }
    )


def unreadable(what: str) -> Problem:
    """The error of a row that this version cannot read."""
    return Problem(
        Code.STORAGE_FAILED, f"the stored {what} cannot be read by this version of the server"
    )


def to_json(value: object) -> str:
    """Compact JSON."""
    # NaN is not JSON: a metric that is not a number is stored as null, or not at all.
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def run_row(run: Run, *, current_branch: str) -> dict[str, Any]:
    """The row of a run."""
    return {
        "name": run.name,
        "key": run.key,
        "fingerprint": run.fingerprint,
        "policy": settings_to_json(run.policy),
        "feedback": run.feedback,
        "method": settings_to_json(run.method),
        "current_branch": current_branch,
        "archived": run.archived,
        "created_at": run.created_at,
        **asdict(run.texts),
        "template_date": run.template_date,
        "frozen": run.frozen,
    }


def run_of(row: RowMapping) -> Run:
    """The run of a row."""
    return Run(
        name=row["name"],
        key=row["key"],
        fingerprint=row["fingerprint"],
        policy=settings_from_json(Policy, row["policy"]),
        feedback=row["feedback"],
        method=settings_from_json(MethodSettings, row["method"]),
        created_at=row["created_at"],
        archived=row["archived"],
        texts=TextRules(row["truncation"], row["empty_response"]),
        template_date=row["template_date"],
        frozen=row["frozen"],
    )


def change_row(run: str, number: int, change: Change) -> dict[str, Any]:
    """The row of an audit entry."""
    return {
        "run": run,
        "number": number,
        "at": change.at,
        "what": change.what,
        "detail": to_json(dict(change.detail)),
        "reason": change.reason,
        "caller": change.caller,
    }


def change_of(row: RowMapping) -> Change:
    """The audit entry of a row."""
    try:
        detail = json.loads(row["detail"])
    except ValueError as error:
        raise unreadable("audit trail") from error
    return Change(row["at"], row["what"], detail, row["reason"], row["caller"])


def branch_row(run: str, branch: Branch) -> dict[str, Any]:
    """The row of a branch: its columns are named as its fields."""
    return {"run": run, **asdict(branch)}


def branch_of(row: RowMapping) -> Branch:
    """The branch of a row."""
    return Branch(**{name: row[name] for name in _BRANCH_COLUMNS})


_BRANCH_COLUMNS = [field.name for field in fields(Branch)]
_HEAD_COLUMNS = [
    field.name for field in fields(Head) if field.name not in {"metrics", "weights", "optimizer"}
]


def head_row(run: str, head: Head) -> dict[str, Any]:
    """The row of a head."""
    return {
        "run": run,
        **{name: getattr(head, name) for name in _HEAD_COLUMNS},
        "metrics": to_json(dict(head.metrics)),
        **blob_columns("weights", head.weights),
        **blob_columns("optimizer", head.optimizer),
    }


def head_of(row: RowMapping) -> Head:
    """The head of a row."""
    weights = blob_of("weights", row)
    assert weights is not None  # the column takes no null
    try:
        metrics = json.loads(row["metrics"])
    except ValueError as error:
        raise unreadable(f"metrics of head {row['number']}") from error
    return Head(
        **{name: row[name] for name in _HEAD_COLUMNS},
        metrics=metrics,
        weights=weights,
        optimizer=blob_of("optimizer", row),
    )


def blob_columns(name: str, blob: BlobRef | None) -> dict[str, Any]:
    """The three columns of a stored file."""
    return {
        f"{name}_key": blob.key if blob else None,
        f"{name}_sha256": blob.sha256 if blob else None,
        f"{name}_size": blob.size if blob else None,
    }


def blob_of(name: str, row: RowMapping) -> BlobRef | None:
    """The stored file of three columns, or None."""
    key = row[f"{name}_key"]
    if key is None:
        return None
    return BlobRef(key, row[f"{name}_sha256"], row[f"{name}_size"])
