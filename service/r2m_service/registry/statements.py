"""Statements that several of the registry's transactions are made of."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select, update

from r2m.errors import Code, Problem
from r2m_service.domain.runs import LIVE, PREVIOUS, Branch, Change, RunState
from r2m_service.registry.rows import branch_of, branch_row, change_row, run_of
from r2m_service.registry.tables import aliases, branches, changes, heads, runs

if TYPE_CHECKING:
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
    return [
        RunState(
            run=run_of(row),
            current=row["current_branch"],
            branches=branches_of[row["name"]],
            aliases=aliases_of[row["name"]],
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


def unknown_run(name: str) -> Problem:
    """The error of a run that does not exist."""
    return Problem(Code.UNKNOWN_RUN, f"no run is named {name!r}", field="run")
