"""The registry's metadata in SQLite or PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import insert, update

from r2m.errors import Code, Problem
from r2m_service.domain.runs import CANDIDATE, FIRST_BRANCH, LIVE, REFERENCE, Branch, Change
from r2m_service.registry.labels import SqlLabels
from r2m_service.registry.pruning import apply_repair, prune_run
from r2m_service.registry.reading import SqlReader
from r2m_service.registry.rows import branch_row, head_row, run_row, settings_to_json
from r2m_service.registry.statements import (
    add_branch,
    audit_of,
    count_look,
    lock_open_run,
    move_live,
    point,
    pointed,
    record,
    remember_trained,
    require_head,
    set_frozen,
    store_audit,
)
from r2m_service.registry.tables import branches, heads, runs, steps

if TYPE_CHECKING:
    from datetime import datetime

    from r2m_service.domain.method import MethodSettings
    from r2m_service.domain.repair import Repair
    from r2m_service.domain.retention import Keep, Pruned
    from r2m_service.domain.runs import Change, Head, Run, StepCommit


class SqlRegistry(SqlLabels, SqlReader):
    """The application's `Registry` and `LabelStore`. Safe from many threads and many replicas.

    Every method is one transaction, and raises Problem(storage_failed) where the database fails.
    Writers of a run take its row first and so come one after the other: what they read stays true
    until they commit. The compare-and-swap and the unique keys do not rest on that.
    """

    def create_run(self, run: Run, first: Head, change: Change) -> None:
        """Store a run with branch `main` at step 0, its first head, and live and reference.

        Raises:
            Problem: run_exists, where the name is taken, also by an archived run.
        """
        taken = Problem(Code.RUN_EXISTS, f"a run named {run.name!r} exists", field="run")
        with self._writing(conflict=taken) as connection:
            connection.execute(insert(runs).values(run_row(run, current_branch=FIRST_BRANCH)))
            connection.execute(insert(heads).values(head_row(run.name, first)))
            branch = Branch(name=FIRST_BRANCH, live=first.number, step=0)
            connection.execute(insert(branches).values(branch_row(run.name, branch)))
            for alias in (LIVE, REFERENCE):
                point(connection, run.name, alias, first.number)
            record(connection, run.name, change)

    def update_method(self, name: str, method: MethodSettings, change: Change) -> None:
        """Replace a run's settings.

        Raises:
            Problem: unknown_run, run_archived.
        """
        with self._writing() as connection:
            lock_open_run(connection, name)
            connection.execute(
                update(runs).where(runs.c.name == name).values(method=settings_to_json(method))
            )
            record(connection, name, change)

    def set_frozen(self, name: str, reason: str | None, change: Change) -> None:
        """Freeze a run, or lift it: then the count of rejections and the alarm start anew.

        Raises:
            Problem: unknown_run, run_archived.
        """
        with self._writing() as connection:
            lock_open_run(connection, name)
            set_frozen(connection, name, reason)
            if reason is None:
                connection.execute(
                    update(branches).where(branches.c.run == name).values(rejections=0)
                )
                audit = audit_of(connection, name).reset()
                store_audit(connection, name, audit)
            record(connection, name, change)

    def archive_run(self, name: str, change: Change) -> None:
        """Mark a run read-only.

        Raises:
            Problem: unknown_run, run_archived.
        """
        with self._writing() as connection:
            lock_open_run(connection, name)
            connection.execute(update(runs).where(runs.c.name == name).values(archived=True))
            record(connection, name, change)

    def set_alias(
        self, run: str, alias: str, head: int, expect: int | None, change: Change
    ) -> int | None:
        """Point an alias at a head; returns where it pointed before (None: it is new).

        Raises:
            Problem: alias_moved, where `expect` is given and the alias points elsewhere or
                nowhere; unknown_run, run_archived, unknown_head, head_pruned.
        """
        with self._writing() as connection:
            lock_open_run(connection, run)
            require_head(connection, run, head)
            before = pointed(connection, run, alias)
            if expect is not None and before != expect:
                where = "is not set" if before is None else f"points at {before}"
                raise Problem(
                    Code.ALIAS_MOVED,
                    f"alias {alias!r} of run {run!r} {where}, not at {expect}",
                    field="expect",
                )
            point(connection, run, alias, head)
            record(connection, run, change)
        return before

    def commit_step(self, commit: StepCommit) -> None:
        """Append the candidate, the answer, and advance the branch: one compare-and-swap.

        Raises:
            Problem: align_conflict, where another commit came first; unknown_run, run_archived.
                Nothing is changed then.
            ValueError: where `live` is neither the parent nor the candidate: it would never
                succeed, and must not look like a conflict.
        """
        candidate = commit.candidate
        if commit.live not in {commit.parent, candidate.number if candidate else commit.parent}:
            raise ValueError(f"step {commit.step}: live is the parent or the candidate")
        conflict = Problem(
            Code.ALIGN_CONFLICT,
            f"another align of run {commit.run!r} committed before step {commit.step} of branch "
            f"{commit.branch!r}: send the same request again",
        )
        with self._writing(conflict=conflict) as connection:
            current = lock_open_run(connection, commit.run)
            if candidate is not None:
                connection.execute(insert(heads).values(head_row(commit.run, candidate)))
            swapped = connection.execute(
                update(branches)
                .where(branches.c.run == commit.run, branches.c.name == commit.branch)
                .where(branches.c.step == commit.step - 1, branches.c.live == commit.parent)
                .values(step=commit.step, live=commit.live, rejections=commit.rejections)
            )
            if swapped.rowcount != 1:
                raise conflict
            if commit.freeze is not None:
                set_frozen(connection, commit.run, commit.freeze)
                at_step = {"branch": commit.branch, "step": commit.step}
                change = Change(commit.at, "frozen", at_step, commit.freeze)
                record(connection, commit.run, change)
            if commit.look:
                count_look(connection, commit.run)
            remember_trained(connection, commit.run, commit.trained)
            connection.execute(
                insert(steps).values(
                    run=commit.run,
                    branch=commit.branch,
                    step=commit.step,
                    content_hash=commit.content_hash,
                    answer=commit.answer,
                    live_after=commit.live,
                    created_at=commit.at,
                )
            )
            if commit.branch == current:
                move_live(connection, commit.run, commit.live)
                if candidate is not None:
                    point(connection, commit.run, CANDIDATE, candidate.number)
            if commit.reference is not None:
                point(connection, commit.run, REFERENCE, commit.reference)
                moved = {"alias": REFERENCE, "head": commit.reference}
                why = f"the anchors prove it better, at step {commit.step} of {commit.branch}"
                record(connection, commit.run, Change(commit.at, "alias", moved, why))

    def open_branch(self, run: str, branch: Branch, change: Change) -> None:
        """Add a branch, make it the run's current one, and move `live` and `previous`.

        Raises:
            Problem: align_conflict, where a branch of that name exists; unknown_run,
                run_archived, unknown_head, head_pruned.
        """
        conflict = Problem(
            Code.ALIGN_CONFLICT,
            f"run {run!r} got a branch {branch.name!r} meanwhile: send the same request again",
        )
        with self._writing(conflict=conflict) as connection:
            lock_open_run(connection, run)
            require_head(connection, run, branch.live, resumable=True)
            add_branch(connection, run, branch)
            record(connection, run, change)

    def prune(self, run: str, keep: Keep, at: datetime) -> Pruned:
        """Let go of what the retention rule no longer asks for; its files may be removed then.

        Writers of the run wait meanwhile, so nothing that any of them has committed to is let go.

        Raises:
            Problem: unknown_run.
        """
        with self._writing() as connection:
            return prune_run(connection, run, keep, at)

    def repair(self, repair: Repair, change: Change) -> None:
        """Mark the heads whose files are lost, and let the run go on without them."""
        with self._writing() as connection:
            apply_repair(connection, repair, change)
