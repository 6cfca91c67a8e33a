"""Letting go of heads' files in the metadata: by the retention rule, and where they are lost.

The row is changed first and the file removed after: a crash between the two leaves a file that no
row needs, which the next start removes; never a row whose file is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select, update

from r2m_service.domain.retention import Pruned, Stored, prunable, recent_steps
from r2m_service.registry.rows import branch_of
from r2m_service.registry.statements import add_branch, lock_run, point, record
from r2m_service.registry.tables import aliases, branches, heads, steps

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from sqlalchemy import Connection

    from r2m_service.domain.repair import Repair
    from r2m_service.domain.retention import Keep, Recent
    from r2m_service.domain.runs import Branch, Change

_AT_ONCE = 1000  # databases take so many values in one statement, and some more
_NO_OPTIMIZER: dict[str, Any] = dict.fromkeys(
    ("optimizer_key", "optimizer_sha256", "optimizer_size")
)


def prune_run(connection: Connection, run: str, keep: Keep, at: datetime) -> Pruned:
    """Apply the retention rule to a run, whose row is taken until the transaction ends.

    Raises:
        Problem: unknown_run.
    """
    _, current = lock_run(connection, run)
    found = connection.execute(select(branches).where(branches.c.run == run)).mappings()
    lines: dict[str, Branch] = {row["name"]: branch_of(row) for row in found}
    pointed = connection.execute(
        select(aliases.c.alias, aliases.c.head).where(aliases.c.run == run)
    )
    rows = connection.execute(
        select(heads.c.number, heads.c.weights_key, heads.c.optimizer_key).where(
            heads.c.run == run, heads.c.pruned_at.is_(None)
        )
    ).all()
    going = prunable(
        [Stored(row.number, row.optimizer_key is not None) for row in rows],
        branches=lines,
        current=current,
        aliases={row.alias: row.head for row in pointed},
        recent=_heads_of(connection, run, recent_steps(lines, keep.staleness)),
        keep=keep,
    )
    _let_go(connection, run, going.heads, {"pruned_at": at, "pruned_why": "retention"})
    _let_go(connection, run, going.optimizers, {})
    keys = [row.weights_key for row in rows if row.number in going.heads]
    keys += [
        row.optimizer_key
        for row in rows
        if row.number in going.heads | going.optimizers and row.optimizer_key is not None
    ]
    return Pruned(tuple(sorted(going.heads)), tuple(sorted(going.optimizers)), tuple(keys))


def apply_repair(connection: Connection, repair: Repair, change: Change) -> None:
    """Change a run as planned.

    Raises:
        Problem: unknown_run.
    """
    lock_run(connection, repair.run)
    why = {"pruned_at": change.at, "pruned_why": "damaged"}
    _let_go(connection, repair.run, repair.weights, why)
    _let_go(connection, repair.run, repair.optimizers, {})
    if repair.branch is not None:
        add_branch(connection, repair.run, repair.branch)
    _move(connection, repair.run, repair.aliases)
    record(connection, repair.run, change)


def _heads_of(connection: Connection, run: str, recent: Recent) -> frozenset[int]:
    found = set(recent.heads)
    for span in recent.spans:
        query = select(steps.c.live_after).where(
            steps.c.run == run,
            steps.c.branch == span.branch,
            steps.c.step.between(span.first, span.last),
        )
        found.update(connection.execute(query).scalars())
    return frozenset(found)


def _let_go(
    connection: Connection, run: str, numbers: Collection[int], values: Mapping[str, Any]
) -> None:
    listed = sorted(numbers)
    for start in range(0, len(listed), _AT_ONCE):
        some = listed[start : start + _AT_ONCE]
        connection.execute(
            update(heads)
            .where(heads.c.run == run, heads.c.number.in_(some))
            .values({**values, **_NO_OPTIMIZER})
        )


def _move(connection: Connection, run: str, moves: Mapping[str, int | None]) -> None:
    for alias, head in moves.items():
        if head is None:
            connection.execute(
                delete(aliases).where(aliases.c.run == run, aliases.c.alias == alias)
            )
        else:
            point(connection, run, alias, head)
