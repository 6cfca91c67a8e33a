"""The reading half of the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, select

from r2m_service.domain.runs import AnsweredStep, DiskUse
from r2m_service.registry.rows import change_of, head_of
from r2m_service.registry.statements import states
from r2m_service.registry.tables import anchor_sets, changes, heads, runs, samples, steps
from r2m_service.registry.transactions import Transactions

if TYPE_CHECKING:
    from r2m_service.domain.runs import Change, Head, RunState


class SqlReader(Transactions):
    """What reads; `SqlRegistry` adds what writes."""

    def run_state(self, name: str) -> RunState | None:
        """The run with its branches and aliases, read in one transaction; None if unknown."""
        with self._reading() as connection:
            found = states(connection, name)
        return found[0] if found else None

    def run_states(self) -> list[RunState]:
        """All runs, oldest first."""
        with self._reading() as connection:
            return states(connection, None)

    def head(self, run: str, number: int) -> Head | None:
        """One version, or None."""
        query = select(heads).where(heads.c.run == run, heads.c.number == number)
        with self._reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
            return None if row is None else head_of(row)

    def heads(self, run: str) -> list[Head]:
        """All versions of a run, by number; none of a run that does not exist."""
        query = select(heads).where(heads.c.run == run).order_by(heads.c.number)
        with self._reading() as connection:
            return [head_of(row) for row in connection.execute(query).mappings()]

    def next_head_number(self, run: str) -> int:
        """One more than the greatest number given."""
        query = select(func.max(heads.c.number)).where(heads.c.run == run)
        with self._reading() as connection:
            greatest = connection.execute(query).scalar_one()
        return 0 if greatest is None else greatest + 1

    def answered_step(self, run: str, branch: str, step: int) -> AnsweredStep | None:
        """The stored answer of a step, or None."""
        query = select(steps.c.content_hash, steps.c.answer).where(
            steps.c.run == run, steps.c.branch == branch, steps.c.step == step
        )
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else AnsweredStep(row.content_hash, row.answer)

    def head_after_step(self, run: str, branch: str, step: int) -> int | None:
        """The head that was live after a step of a branch was answered, or None."""
        query = select(steps.c.live_after).where(
            steps.c.run == run, steps.c.branch == branch, steps.c.step == step
        )
        with self._reading() as connection:
            return connection.execute(query).scalar_one_or_none()

    def changes(self, run: str) -> list[Change]:
        """A run's audit trail, oldest first."""
        query = select(changes).where(changes.c.run == run).order_by(changes.c.number)
        with self._reading() as connection:
            return [change_of(row) for row in connection.execute(query).mappings()]

    def disk_use(self, run: str | None = None) -> dict[str, DiskUse]:
        """What the kept heads take, by run: of all runs, or of the one that is named."""
        query = select(
            heads.c.run,
            func.count(),
            func.sum(heads.c.weights_size),
            func.coalesce(func.sum(heads.c.optimizer_size), 0),
        ).where(heads.c.pruned_at.is_(None))
        if run is not None:
            query = query.where(heads.c.run == run)
        with self._reading() as connection:
            return {
                # PostgreSQL's sums are decimals.
                name: DiskUse(count, int(weights), int(optimizers))
                for name, count, weights, optimizers in connection.execute(
                    query.group_by(heads.c.run)
                )
            }

    def stored_keys(self) -> tuple[frozenset[str], frozenset[str]]:
        """The keys of all files that a row needs, and the keys of all runs."""
        with self._reading() as connection:
            found = connection.execute(
                select(heads.c.weights_key, heads.c.optimizer_key).where(
                    heads.c.pruned_at.is_(None)
                )
            )
            named = {key for row in found for key in row if key is not None}
            named |= set(connection.execute(select(anchor_sets.c.file_key)).scalars())
            kept = select(samples.c.file_key).where(samples.c.file_key.is_not(None))
            named |= set(connection.execute(kept).scalars())
            return frozenset(named), frozenset(connection.execute(select(runs.c.key)).scalars())
