"""The calls about anchors, outside labels and freezing; no I/O here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from operator import index
from urllib.parse import urlencode

from r2m_client._calls import Call, path_of
from r2m_client._label_results import AnchorsInfo, KeptSamples, LabelsResult
from r2m_client._reading import read
from r2m_client._results import RunInfo
from r2m_client._samples import Label, Pair, SampleWriter


def put_anchors(run: str, pairs: Iterable[Pair], *, reason: str | None) -> Call[AnchorsInfo]:
    """The whole set; the same again changes nothing, so it may be repeated."""
    writer = SampleWriter("bfloat16")
    body: dict[str, object] = {"pairs": writer.pairs(pairs)}
    if writer.tensors:
        raise ValueError("anchors have no hidden states: they come with align")
    if reason is not None:
        body["reason"] = reason
    return Call(
        "PutAnchors",
        "PUT",
        path_of(run, "anchors"),
        lambda data: read(AnchorsInfo, data),
        {"run": run},
        body,
    )


def anchors(run: str) -> Call[AnchorsInfo]:
    """The set that judges."""
    return Call(
        "GetAnchors",
        "GET",
        path_of(run, "anchors"),
        lambda data: read(AnchorsInfo, data),
        {"run": run},
    )


def add_labels(run: str, labels: Iterable[Label]) -> Call[LabelsResult]:
    """Outside labels; the same again is known, so they may be repeated."""
    body: dict[str, object] = {
        "labels": [
            {key: value for key, value in asdict(label).items() if value is not None}
            for label in labels
        ]
    }
    return Call(
        "AddLabels",
        "POST",
        path_of(run, "labels"),
        lambda data: read(LabelsResult, data),
        {"run": run},
        body,
    )


def samples(run: str, *, after: int, limit: int, waiting: bool) -> Call[KeptSamples]:
    """A page of marked samples."""
    query = {"after": index(after), "limit": index(limit), "waiting": waiting}
    text = urlencode({key: str(value).lower() for key, value in query.items()})
    return Call(
        "ListSamples",
        "GET",
        f"{path_of(run, 'samples')}?{text}",
        lambda data: read(KeptSamples, data),
        {"run": run, **query},
    )


def freeze(run: str, *, frozen: bool, reason: str | None) -> Call[RunInfo]:
    """Freeze a run or lift it; doing it again is fine."""
    body: dict[str, object] = {"frozen": frozen}
    if reason is not None:
        body["reason"] = reason
    return Call(
        "UpdateRun", "PATCH", path_of(run), lambda data: read(RunInfo, data), {"run": run}, body
    )
