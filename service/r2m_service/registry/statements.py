"""Statements that several of the registry's transactions are made of."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select, update

from r2m.errors import Code, Problem
from r2m_service.domain.audit import AuditState
from r2m_service.domain.runs import LIVE, PREVIOUS, AnchorSet, Branch, Change, RunState
from r2m_service.registry.label_rows import anchor_set_of
from r2m_service.registry.rows import branch_of, branch_row, change_row, run_of
from r2m_service.registry.tables import (
    aliases,
    anchor_sets,
    branches,
    changes,
    heads,
    runs,
    trained,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection


def states(connection: Connection, name: str | None) -> list[RunState]:
    """The named run, or all of them, with what belongs to each."""
    only_run: list[Any] = [] if name is None else [runs.c.name == name]
    only_branches: list[Any] = [] if name is None else [branches.c.run == name]
    only_aliases: list[Any] = [] if name is None else [aliases.c.run == name]
    branches_of: defaultdict[str, dict[str, Branch]] = defaultdict(dict)
    for row in connection.execute(select(branches).where(*only_branches)).mappings():
        branches_of[row["run"]][row["name"]] = branch_of(row)
    aliases_of: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in connection.execute(select(aliases).where(*only_aliases)).mappings():
        aliases_of[row["run"]][row["alias"]] = row["head"]
    found = select(runs).where(*only_run).order_by(runs.c.created_at, runs.c.name)
    anchors_of: dict[str, AnchorSet] = {}
    only_sets: list[Any] = [] if name is None else [anchor_sets.c.run == name]
    for row in connection.execute(
        select(anchor_sets).where(*only_sets).order_by(anchor_sets.c.number)
    ).mappings():
        anchors_of[row["run"]] = anchor_set_of(row)
    return [
        RunState(
            run=run_of(row),
            current=row["current_branch"],
            branches=branches_of[row["name"]],
            aliases=aliases_of[row["name"]],
            anchors=anchors_of.get(row["name"]),
            audit=AuditState.from_dict(json.loads(row["audit"])),
        )
        for row in connection.execute(found).mappings()
    ]


def lock_open_run(connection: Connection, run: str) -> str:
    """Take the run's row until the transaction ends (SQLite: the whole database is taken).

    Returns:
        The run's current branch.

    Raises:
        Problem: unknown_run, run_archived.
    """
    archived, current = lock_run(connection, run)
    if archived:
        raise Problem(Code.RUN_ARCHIVED, f"run {run!r} was archived: it is read-only")
    return current


def lock_run(connection: Connection, run: str) -> tuple[bool, str]:
    """As `lock_open_run`, also for an archived run; whether it is, and its current branch.

    Raises:
        Problem: unknown_run.
    """
    row = connection.execute(
        select(runs.c.archived, runs.c.current_branch).where(runs.c.name == run).with_for_update()
    ).one_or_none()
    if row is None:
        raise unknown_run(run)
    return row.archived, row.current_branch


def require_head(connection: Connection, run: str, number: int, *, resumable: bool = False) -> None:
    """Refuse a version that the run does not have, or whose files are gone.

    Args:
        resumable: whether its optimizer state is needed too.

    Raises:
        Problem: unknown_head, head_pruned.
    """
    query = select(heads.c.pruned_at, heads.c.t, heads.c.optimizer_key).where(
        heads.c.run == run, heads.c.number == number
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise Problem(Code.UNKNOWN_HEAD, f"run {run!r} has no head {number}", field="head")
    if row.pruned_at is not None or (resumable and row[1] > 0 and row.optimizer_key is None):
        what = "files were" if row.pruned_at is not None else "optimizer state was"
        raise Problem(
            Code.HEAD_PRUNED, f"head {number} of run {run!r}: its {what} let go", field="head"
        )


def add_branch(connection: Connection, run: str, branch: Branch) -> None:
    """Add a branch, make it the current one, and move `live` and `previous`."""
    connection.execute(insert(branches).values(branch_row(run, branch)))
    connection.execute(update(runs).where(runs.c.name == run).values(current_branch=branch.name))
    move_live(connection, run, branch.live)


def pointed(connection: Connection, run: str, alias: str) -> int | None:
    """The head that an alias points at, or None."""
    query = select(aliases.c.head).where(aliases.c.run == run, aliases.c.alias == alias)
    return connection.execute(query).scalar_one_or_none()


def point(connection: Connection, run: str, alias: str, head: int) -> None:
    """Point an alias, new or not, at a head."""
    moved = connection.execute(
        update(aliases).where(aliases.c.run == run, aliases.c.alias == alias).values(head=head)
    )
    if moved.rowcount == 0:
        connection.execute(insert(aliases).values(run=run, alias=alias, head=head))


def move_live(connection: Connection, run: str, live: int) -> None:
    """Point `live` at a head, and `previous` at where it was; nothing where it is there."""
    before = pointed(connection, run, LIVE)
    if before == live:
        return
    point(connection, run, LIVE, live)
    if before is not None:
        point(connection, run, PREVIOUS, before)


def record(connection: Connection, run: str, change: Change) -> None:
    """Append to a run's audit trail. The run's row is locked, so numbers do not collide."""
    query = select(func.max(changes.c.number)).where(changes.c.run == run)
    last = connection.execute(query).scalar_one()
    number = 0 if last is None else last + 1
    connection.execute(insert(changes).values(change_row(run, number, change)))


def set_frozen(connection: Connection, run: str, reason: str | None) -> None:
    """Say why a run's aligns change nothing; None: they do."""
    connection.execute(update(runs).where(runs.c.name == run).values(frozen=reason))


def audit_of(connection: Connection, run: str) -> AuditState:
    """The state of a run's audited gap."""
    query = select(runs.c.audit).where(runs.c.name == run)
    return AuditState.from_dict(json.loads(connection.execute(query).scalar_one()))


def store_audit(connection: Connection, run: str, audit: AuditState) -> None:
    """Replace the state of a run's audited gap. The run's row is locked."""
    text = json.dumps(audit.to_dict(), allow_nan=False)
    connection.execute(update(runs).where(runs.c.name == run).values(audit=text))


def count_look(connection: Connection, run: str) -> None:
    """Count a judgement by the newest anchor set."""
    newest = select(func.max(anchor_sets.c.number)).where(anchor_sets.c.run == run)
    connection.execute(
        update(anchor_sets)
        .where(anchor_sets.c.run == run, anchor_sets.c.number == newest.scalar_subquery())
        .values(looks=anchor_sets.c.looks + 1)
    )


def remember_trained(connection: Connection, run: str, prompts: Iterable[str]) -> None:
    """Note prompts whose labels were learnt from; those that are noted stay so."""
    for prompt in sorted(prompts):
        at = (trained.c.run == run, trained.c.prompt == prompt)
        if connection.execute(select(trained.c.prompt).where(*at)).one_or_none() is None:
            connection.execute(insert(trained).values(run=run, prompt=prompt))


def unknown_run(name: str) -> Problem:
    """The error of a run that does not exist."""
    return Problem(Code.UNKNOWN_RUN, f"no run is named {name!r}", field="run")
