"""Comparing what the rows name with the files that are there, without changing either."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from r2m.errors import Code, Problem
from r2m_service.domain.repair import Lineage
from r2m_service.registry.engine import for_reading, storage_problem
from r2m_service.registry.rows import branch_of, head_of
from r2m_service.registry.survey import open_existing
from r2m_service.registry.tables import aliases, branches, heads, runs

if TYPE_CHECKING:
    from pathlib import Path

    from r2m_service.domain.runs import BlobRef, Branch, Head
    from r2m_service.registry.blobs import BlobStore

File = Literal["weights", "optimizer"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a head's file.

    Attributes:
        lost: False where it could not be read: it may be whole.
    """

    run: str
    head: int
    file: File
    found: str
    lost: bool = True


def read_lineages(location: str | Path) -> list[Lineage]:
    """All runs of a database whose tables are this version's, oldest first.

    Settings are not looked at: a run can be mended whose settings cannot be read.

    Raises:
        Problem: storage_failed.
    """
    engine = open_existing(location)
    try:
        with for_reading(engine).connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN")  # one state of the database for all queries
            heads_of: defaultdict[str, dict[int, Head]] = defaultdict(dict)
            for row in connection.execute(select(heads)).mappings():
                heads_of[row["run"]][row["number"]] = head_of(row)
            branches_of: defaultdict[str, dict[str, Branch]] = defaultdict(dict)
            for row in connection.execute(select(branches)).mappings():
                branches_of[row["run"]][row["name"]] = branch_of(row)
            aliases_of: defaultdict[str, dict[str, int]] = defaultdict(dict)
            for row in connection.execute(select(aliases)):
                aliases_of[row.run][row.alias] = row.head
            found = connection.execute(select(runs).order_by(runs.c.created_at, runs.c.name)).all()
        return [
            Lineage(
                run=row.name,
                key=row.key,
                archived=row.archived,
                current=row.current_branch,
                branches=branches_of[row.name],
                aliases=aliases_of[row.name],
                heads=heads_of[row.name],
            )
            for row in found
        ]
    except DBAPIError as error:
        raise storage_problem(error) from error
    finally:
        engine.dispose()


def needed(lineage: Lineage) -> Iterator[tuple[int, File, BlobRef]]:
    """The files that a run's rows need."""
    for head in lineage.heads.values():
        if not head.stored:
            continue
        yield head.number, "weights", head.weights
        if head.optimizer is not None:
            yield head.number, "optimizer", head.optimizer


def find_faults(
    lineages: Sequence[Lineage],
    blobs: BlobStore | None,
    sizes: dict[str, int],
    *,
    deep: bool,
    say: Callable[[str], None],
) -> list[Fault]:
    """Files that are missing, or are not what was written.

    Args:
        blobs: None where there is no store.
        sizes: of what lies in it, listed after the rows were read: a file is there before the
            row that needs it.
        deep: read every file and compare its hash; otherwise its size alone.
    """
    listed = [(one.run, *entry) for one in lineages for entry in needed(one)]
    faults: list[Fault] = []
    for place, (run, head, file, ref) in enumerate(listed):
        if ref.key not in sizes:
            faults.append(Fault(run, head, file, "missing"))
        elif sizes[ref.key] != ref.size:
            faults.append(Fault(run, head, file, f"{sizes[ref.key]} bytes, it had {ref.size}"))
        elif deep and blobs is not None:
            say(f"reading file {place + 1} of {len(listed)}: head {head} of {run}")
            try:
                blobs.get(ref)
            except Problem as problem:
                lost = problem.code == Code.HEAD_DAMAGED
                faults.append(Fault(run, head, file, _why(problem, ref, lost=lost), lost=lost))
    return faults


def _why(problem: Problem, ref: BlobRef, *, lost: bool) -> str:
    return "altered" if lost else problem.message.removeprefix(f"stored file {ref.key} ")


def still_needed(faults: Sequence[Fault], lineages: Sequence[Lineage]) -> list[Fault]:
    """The faults of files that the rows, read again, still need.

    A server that runs may have let go of some since they were read first.
    """
    now = {(one.run, head, file) for one in lineages for head, file, _ in needed(one)}
    return [fault for fault in faults if (fault.run, fault.head, fault.file) in now]
