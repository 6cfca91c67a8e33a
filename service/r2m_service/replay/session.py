"""A journal beside the registry that its heads are in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from r2m.errors import Code, Problem
from r2m_service.application.lookup import pruned
from r2m_service.application.parsing import parse, read_json
from r2m_service.domain.method import CHANGEABLE, MethodSettings
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
        self._left_out: list[str] = []

    @property
    def cut(self) -> list[str]:
        """What of the journal is lost, or cannot be replayed."""
        return list(dict.fromkeys([*self._folder.cut, *self._left_out]))

    def rewards(self) -> list[Checked]:
        """Every recorded reward computed again."""
        return recompute(
            (row for row in self._folder.rows("scores") if self._run in (None, row["run"])),
            self._weights,
        )

    def aligns(self, change: Change, *, say: Callable[[str], None]) -> list[Replayed]:
        """Every recorded align run again, branch by branch.

        A branch whose first head is not kept any more is left out, and `cut` says so.

        Raises:
            Problem: unknown_head, storage_failed, invalid_request (settings).
        """
        torch.set_num_threads(1)  # the number of threads decides how sums are split
        rows = (row for row in self._folder.rows("aligns") if self._run in (None, row["run"]))
        found: list[Replayed] = []
        for (run, branch), steps in branches(rows).items():
            try:
                replay = self._begun(run, branch, steps[0], change)
            except Problem as problem:
                if problem.code not in (Code.HEAD_PRUNED, Code.HEAD_DAMAGED):
                    raise
                self._left_out.append(
                    f"branch {branch} of run {run}: its {len(steps)} aligns cannot be run again: "
                    f"{problem.message}"
                )
                continue
            for place, row in enumerate(steps, start=1):
                say(f"{run} {branch}: step {place} of {len(steps)}")
                recorded = read_json(row["method"], what="the recorded settings")
                found.append(replay.step(row, parse(MethodSettings, recorded, field="method")))
        return found

    def _begun(self, run: str, branch: str, step: Mapping[str, Any], change: Change) -> Replay:
        """A branch's replay, at the head that its first recorded step was trained from."""
        first = self._head(run, step["head"])
        head = self._weights(run, first.number, step["sha256"])
        moments, whole = Moments.zeros(head), first.t == 0
        if first.optimizer is not None:
            data = self._blobs.get(first.optimizer)
            moments, whole = Moments.from_bytes(data, torch.device("cpu")), True
        if not whole:
            self._left_out.append(
                f"branch {branch} of run {run}: the optimizer state of head {first.number} is not "
                "kept any more, so its aligns are approximate"
            )
        return Replay(head, moments, change, whole=whole)

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


REPLAYED = CHANGEABLE - {"replay_groups", "audit_rate", "freeze_on_alarm"} | {"omega"}
"""Settings that say something to a replay: its groups are the recorded ones, its head the live one,
without a run's controls."""


def changed(recorded: MethodSettings, wanted: dict[str, Any]) -> MethodSettings:
    """Settings with other values.

    Raises:
        Problem: invalid_request.
    """
    values = asdict(recorded)
    for key in sorted(wanted.keys() & values.keys() - REPLAYED):
        raise Problem(
            Code.INVALID_REQUEST,
            f"a replay runs the live head on the recorded groups: {key} changes nothing there; "
            f"what does is {', '.join(sorted(REPLAYED))}",
            field=f"method.{key}",
        )
    for key, value in wanted.items():
        old = values.get(key)
        values[key] = (
            {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return parse(MethodSettings, values, field="method")
