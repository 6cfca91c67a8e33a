"""A journal beside the registry that its heads are in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from r2m.errors import Code, Problem
from r2m_service.application.lookup import pruned
from r2m_service.application.parsing import parse, read_json
from r2m_service.domain.method import MethodSettings
from r2m_service.domain.runs import Head as HeadRow
from r2m_service.journal.reader import JournalFolder
from r2m_service.modeling.head import Head
from r2m_service.modeling.update import Moments
from r2m_service.registry.blobs import BlobStore
from r2m_service.registry.sql import SqlRegistry
from r2m_service.replay.aligns import Replay, Replayed, branches
from r2m_service.replay.rewards import Checked, recompute

Change = Callable[[MethodSettings], MethodSettings]


class Session:
    """What `r2m replay` works on.

    Raises:
        Problem: storage_failed, where the journal or the registry cannot be read.
    """

    def __init__(
        self,
        journal: Path,
        *,
        state: Path,
        registry: str | None,
        blobs: str | None,
        run: str | None,
    ) -> None:
        self._folder = JournalFolder(journal)
        file = state / "r2m.db"
        if registry is None and not file.is_file():
            raise Problem(Code.STORAGE_FAILED, f"{state} holds no registry (r2m.db)")
        self._registry = SqlRegistry(registry or file)
        self._blobs = BlobStore(blobs or str(state / "blobs"))
        self._run = run

    @property
    def cut(self) -> list[str]:
        """What was left out of the journal."""
        return list(dict.fromkeys(self._folder.cut))

    def rewards(self) -> list[Checked]:
        """Every recorded reward computed again."""
        return recompute(
            (row for row in self._folder.rows("scores") if self._run in (None, row["run"])),
            self._weights,
        )

    def aligns(self, change: Change, *, say: Callable[[str], None]) -> list[Replayed]:
        """Every recorded align run again, branch by branch.

        Raises:
            Problem: head_damaged, unknown_head, where a branch's first head is not kept.
        """
        torch.set_num_threads(1)  # the number of threads decides how sums are split
        rows = (row for row in self._folder.rows("aligns") if self._run in (None, row["run"]))
        found: list[Replayed] = []
        for (run, branch), steps in branches(rows).items():
            first = self._head(run, steps[0]["head"])
            if not first.stored:
                raise pruned(run, first)
            head = Head.from_bytes(self._blobs.get(first.weights))
            moments = Moments.zeros(head)
            if first.optimizer is not None:
                data = self._blobs.get(first.optimizer)
                moments = Moments.from_bytes(data, torch.device("cpu"))
            replay = Replay(head, moments, change)
            for place, row in enumerate(steps, start=1):
                say(f"{run} {branch}: step {place} of {len(steps)}")
                recorded = read_json(row["method"], what="the recorded settings")
                found.append(replay.step(row, parse(MethodSettings, recorded, field="method")))
        return found

    def _head(self, run: str, number: int) -> HeadRow:
        head = self._registry.head(run, number)
        if head is None:
            raise Problem(
                Code.UNKNOWN_HEAD, f"the registry has no head {number} of run {run!r}", field="head"
            )
        return head

    def _weights(self, run: str, number: int, sha256: str) -> Head:
        head = self._head(run, number)
        if head.weights.sha256 != sha256:
            raise Problem(
                Code.HEAD_DAMAGED,
                f"head {number} of run {run!r} is another one than the journal's: its registry?",
            )
        if not head.stored:
            raise pruned(run, head)
        return Head.from_bytes(self._blobs.get(head.weights))


def changed(recorded: MethodSettings, wanted: dict[str, Any]) -> MethodSettings:
    """Settings with other values.

    Raises:
        Problem: invalid_request.
    """
    values = asdict(recorded)
    for key, value in wanted.items():
        old = values.get(key)
        values[key] = (
            {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return parse(MethodSettings, values, field="method")
