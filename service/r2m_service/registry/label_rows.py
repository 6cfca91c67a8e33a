"""Between rows and what outside labels are about."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from r2m_service.domain.labels import KeptSample, Label
from r2m_service.domain.runs import AnchorSet
from r2m_service.registry.rows import blob_columns, blob_of, to_json, unreadable

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

_PLAIN = (
    "id",
    "group",
    "use",
    "prompt",
    "content",
    "head",
    "branch",
    "reward",
    "vanilla_reward",
    "at",
)


def anchor_set_of(row: RowMapping) -> AnchorSet:
    """The anchor set of a row."""
    file = blob_of("file", row)
    assert file is not None  # the column takes no null
    return AnchorSet(row["number"], row["pairs"], row["looks"], file)


def sample_row(run: str, number: int, sample: KeptSample) -> dict[str, Any]:
    """The row of a kept sample."""
    return {
        "run": run,
        "number": number,
        **{name: getattr(sample, name) for name in _PLAIN},
        "text": to_json(dict(sample.text)),
        "feedback": None if sample.feedback is None else to_json(dict(sample.feedback)),
        **blob_columns("file", sample.file),
    }


def sample_of(row: RowMapping) -> KeptSample:
    """The kept sample of a row."""
    try:
        text = json.loads(row["text"])
        feedback = None if row["feedback"] is None else json.loads(row["feedback"])
    except ValueError as error:
        raise unreadable("sample") from error
    return KeptSample(
        **{name: row[name] for name in _PLAIN},
        text=text,
        feedback=feedback,
        file=blob_of("file", row),
    )


def label_row(run: str, number: int, label: Label) -> dict[str, Any]:
    """The row of a label."""
    return {
        "run": run,
        "number": number,
        "sample": label.sample,
        "loser": label.loser or "",
        "grade": label.grade,
        "source": label.source,
        "at": label.at,
    }


def label_of(row: RowMapping) -> Label:
    """The label of a row."""
    return Label(row["sample"], row["grade"], row["loser"] or None, row["source"], row["at"])
