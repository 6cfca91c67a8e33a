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
from r2m_service.registry.rows import blob_of, branch_of, head_of
from r2m_service.registry.survey import open_existing
from r2m_service.registry.tables import aliases, anchor_sets, branches, heads, runs, samples

if TYPE_CHECKING:
    from pathlib import Path

    from r2m_service.domain.runs import BlobRef, Branch, Head
    from r2m_service.registry.blobs import BlobStore

File = Literal["weights", "optimizer", "anchors", "earlier anchors", "sample"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a file.

    Attributes:
        head: whose weights or optimizer state it is; None for what belongs to no head.
        lost: False where it could not be read: it may be whole.
    """

    run: str
    head: int | None
    file: File
    found: str
    key: str
    lost: bool = True


@dataclass(frozen=True, slots=True)
class Needed:
    """A file that a row needs, named as in `Fault`."""

    run: str
    head: int | None
    file: File
    ref: BlobRef


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


def files_of(lineages: Sequence[Lineage], location: str | Path) -> list[Needed]:
    """Every file that a row needs: of heads, of anchor sets, of samples that wait for labels.

    Raises:
        Problem: storage_failed.
    """
    found = [Needed(one.run, *entry) for one in lineages for entry in needed(one)]
    engine = open_existing(location)
    try:
        with for_reading(engine).connect() as connection:
            newest: dict[str, int] = {}
            sets = connection.execute(select(anchor_sets)).mappings().all()
            for row in sets:
                newest[row["run"]] = max(row["number"], newest.get(row["run"], 0))
            for row in sets:
                judges = row["number"] == newest[row["run"]]
                ref = blob_of("file", row)
                if ref is not None:
                    file: File = "anchors" if judges else "earlier anchors"
                    found.append(Needed(row["run"], None, file, ref))
            for row in connection.execute(select(samples)).mappings():
                ref = blob_of("file", row)
                if ref is not None:
                    found.append(Needed(row["run"], None, "sample", ref))
    except DBAPIError as error:
        raise storage_problem(error) from error
    finally:
        engine.dispose()
    return found


def needed(lineage: Lineage) -> Iterator[tuple[int, File, BlobRef]]:
    """The files that a run's heads need."""
    for head in lineage.heads.values():
        if not head.stored:
            continue
        yield head.number, "weights", head.weights
        if head.optimizer is not None:
            yield head.number, "optimizer", head.optimizer


def find_faults(
    files: Sequence[Needed],
    blobs: BlobStore | None,
    sizes: dict[str, int],
    *,
    deep: bool,
    say: Callable[[str], None],
) -> list[Fault]:
    """Files that are missing, or are not what was written.

    Args:
        files: that rows need.
        blobs: None where there is no store.
        sizes: of what lies in it, listed after the rows were read: a file is there before the
            row that needs it.
        deep: read every file and compare its hash; otherwise its size alone.
    """
    faults: list[Fault] = []
    for place, one in enumerate(files, start=1):
        ref, found, lost = one.ref, None, True
        if ref.key not in sizes:
            found = "missing"
        elif sizes[ref.key] != ref.size:
            found = f"{sizes[ref.key]} bytes, it had {ref.size}"
        elif deep and blobs is not None:
            what = one.file if one.head is None else f"head {one.head}"
            say(f"reading file {place} of {len(files)}: {what} of {one.run}")
            try:
                blobs.get(ref)
            except Problem as problem:
                lost = problem.code == Code.HEAD_DAMAGED
                found = _why(problem, ref, lost=lost)
        if found is not None:
            faults.append(Fault(one.run, one.head, one.file, found, ref.key, lost=lost))
    return faults


def _why(problem: Problem, ref: BlobRef, *, lost: bool) -> str:
    return "altered" if lost else problem.message.removeprefix(f"stored file {ref.key} ")
