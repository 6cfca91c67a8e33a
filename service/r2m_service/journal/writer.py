"""Appending to a journal."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from r2m.errors import Code, Problem
from r2m.tensors import TensorValue
from r2m_service.application.journal_port import AlignedStep, HeadName, ScoredRow
from r2m_service.application.scoring_items import Trace
from r2m_service.journal.schema import ALIGNS, SCORES

logger = logging.getLogger(__name__)

FILE_BYTES = 256 << 20
"""A file that grew beyond is closed, and the next one begun."""


class ArrowJournal:
    """The application's `Journal`. Safe from many threads.

    Args:
        folder: made where it is missing.
        full: keep hidden states too.

    Raises:
        Problem: storage_failed, where the folder cannot be made or written.
    """

    def __init__(self, folder: Path, *, full: bool = False) -> None:
        self.full = full
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise Problem(
                Code.STORAGE_FAILED, f"the journal {folder} cannot be written: {error.strerror}"
            ) from error
        self._scores = _File(folder, "scores", SCORES)
        self._aligns = _File(folder, "aligns", ALIGNS)

    def scored(self, by: HeadName, at: datetime, rows: Sequence[ScoredRow]) -> None:
        """Rewards of one call."""
        head = _head(by)
        self._scores.append(
            [
                {
                    "at": at,
                    **head,
                    "id": row.id,
                    "group": row.group,
                    "reward": row.reward,
                    "vanilla_reward": row.vanilla_reward,
                    **_trace(row.trace, row.feedback),
                }
                for row in rows
            ]
        )

    def aligned(self, at: datetime, step: AlignedStep) -> None:
        """An align that was committed."""
        rows = [
            {
                "group": row.group,
                "replayed": row.replayed,
                "label": row.label,
                "reward": row.reward,
                "reference_fused": row.reference_fused,
                "reference_base": row.reference_base,
                **_trace(row.trace, row.feedback),
            }
            for row in step.rows
        ]
        self._aligns.append(
            [
                {
                    "at": at,
                    **_head(step.parent),
                    "step": step.step,
                    "reference": step.reference,
                    "candidate": step.candidate,
                    "live": step.live,
                    "verdict": step.verdict,
                    "t": step.t,
                    "candidate_omega": step.candidate_omega,
                    "method": step.method,
                    "answer": step.answer,
                    "rows": rows,
                }
            ]
        )

    def close(self) -> None:
        """End the files."""
        self._scores.close()
        self._aligns.close()


class _File:
    """One kind's files, made when the first row comes."""

    def __init__(self, folder: Path, kind: str, schema: pa.Schema) -> None:
        self._folder, self._kind, self._schema = folder, kind, schema
        self._lock = threading.Lock()
        self._sink: Any = None
        self._writer: Any = None
        self._made = 0

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Write rows as one batch. A disk that is full costs the batch, not the caller."""
        if not rows:
            return
        batch = pa.RecordBatch.from_pylist(rows, schema=self._schema)
        with self._lock:
            try:
                self._write(batch)
            except OSError as error:
                # What is half written ends this file; readers stop at its last whole batch.
                logger.warning("journal: %d %s lost: %s", len(rows), self._kind, error)
                self._end()

    def _write(self, batch: pa.RecordBatch) -> None:
        if self._writer is None:
            name = f"{self._kind}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}-{self._made}"
            self._made += 1
            self._sink = open(self._folder / f"{name}.arrows", "xb")  # noqa: SIM115 - kept open
            self._writer = pa.ipc.new_stream(self._sink, self._schema)
        self._writer.write_batch(batch)
        self._sink.flush()
        if self._sink.tell() > FILE_BYTES:
            self.close_now()

    def close(self) -> None:
        """End the file at hand; what a full disk leaves open is read as far as it goes."""
        with self._lock:
            try:
                self.close_now()
            except OSError as error:
                logger.warning("journal: a file of %s was not ended: %s", self._kind, error)

    def close_now(self) -> None:
        """End the file at hand; the lock is held."""
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            self._end()

    def _end(self) -> None:
        sink, self._sink, self._writer = self._sink, None, None
        if sink is not None:
            with suppress(OSError):  # it writes what is left, and the disk may be full still
                sink.close()


def _head(name: HeadName) -> dict[str, Any]:
    return asdict(name)


def _trace(trace: Trace, states: TensorValue | None) -> dict[str, Any]:
    return {
        "rte": trace.rte,
        "u": trace.u,
        "c": trace.c,
        "j": trace.j,
        "fused": trace.fused,
        "states": None if states is None else bytes(states.data),
        "states_dtype": None if states is None else states.dtype,
        "states_shape": None if states is None else list(states.shape),
    }
