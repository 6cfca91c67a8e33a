"""Runs, heads and commits for the registry's tests: whole ones, with what a test is about given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from r2m.errors import Code, Problem
from r2m_service.domain.method import Gate, MethodSettings, Omega
from r2m_service.domain.runs import BlobRef, Branch, Change, Head, Policy, Run, StepCommit
from r2m_service.registry import sql

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def make_run(name: str = "tldr", **changes: Any) -> Run:
    given: dict[str, Any] = {
        "name": name,
        "key": f"k-{name}",
        "fingerprint": "f" * 64,
        "policy": Policy(hidden_size=4096, hidden_state="pre_norm", last_token=False),
        "feedback": "policy",
        "method": MethodSettings(
            profile="guarded",
            width=64,
            alpha=0.3,
            learning_rate=0.1 + 0.2,
            weight_decay=0.0,
            max_grad_norm=None,
            omega=Omega(kind="ramp", steps=10, floor=1 / 3),
            kl_weight=1.0,
            labels="outside_first",
            gate=Gate(spread_max=None),
            seed=2**52,
        ),
        "created_at": START,
    }
    return Run(**{**given, **changes})


def make_head(number: int = 0, parent: int | None = None, **changes: Any) -> Head:
    given: dict[str, Any] = {
        "number": number,
        "parent": parent,
        "branch": "main",
        "step": number,
        "t": number,
        "omega": 1 / 3,
        "reference": 0,
        "accepted": True,
        "verdict": "accepted",
        "reason": "",
        "metrics": {"bt": 0.1 + 0.2, "groups": [1, None], "note": "ω \x00 \ud800"},
        "created_at": START + timedelta(seconds=number),
        "weights": BlobRef(f"runs/k/{number}.safetensors", "0" * 64, 3),
        "optimizer": BlobRef(f"runs/k/{number}.optimizer", "1" * 64, 2**40) if number else None,
    }
    return Head(**{**given, **changes})


def make_commit(step: int, parent: int, made: int | None = None, **changes: Any) -> StepCommit:
    """Step `step` on head `parent`; it made the accepted version `made`, or none."""
    branch = changes.get("branch", "main")
    candidate = None if made is None else make_head(made, parent, step=step, branch=branch)
    given: dict[str, Any] = {
        "run": "tldr",
        "branch": branch,
        "step": step,
        "parent": parent,
        "live": parent if made is None else made,
        "candidate": candidate,
        "content_hash": f"hash-{step}",
        "answer": f'{{"step": {step}}}',
        "at": START + timedelta(minutes=step),
    }
    return StepCommit(**{**given, **changes})


class Refusal:
    """The Problem that a block raised."""

    def __init__(self, code: Code, *parts: str) -> None:
        self._code, self._parts = code, parts
        self._raises = pytest.raises(Problem)

    def __enter__(self) -> Refusal:
        self._info = self._raises.__enter__()
        return self

    @property
    def message(self) -> str:
        """What it said."""
        return self._info.value.message

    def __exit__(self, *raised: Any) -> bool | None:
        handled = self._raises.__exit__(*raised)
        problem = self._info.value
        assert problem.code == self._code, problem.message
        for part in self._parts:
            assert part in problem.message
        return handled


def refuses(code: Code, *parts: str) -> Refusal:
    """The block raises a Problem of this code, whose sentence holds the parts."""
    return Refusal(code, *parts)


CHANGE = Change(datetime(2026, 11, 23, tzinfo=UTC), "updated", {"by": "a test"})


class SqlRegistry(sql.SqlRegistry):
    """The registry, for tests that are not about the audit trail: entries are made up."""

    def create_run(self, run: Run, first: Head, change: Change = CHANGE) -> None:
        super().create_run(run, first, change)

    def archive_run(self, name: str, change: Change = CHANGE) -> None:
        super().archive_run(name, change)

    def set_alias(
        self, run: str, alias: str, head: int, expect: int | None, change: Change = CHANGE
    ) -> int | None:
        return super().set_alias(run, alias, head, expect, change)

    def open_branch(self, run: str, branch: Branch, change: Change = CHANGE) -> None:
        super().open_branch(run, branch, change)
