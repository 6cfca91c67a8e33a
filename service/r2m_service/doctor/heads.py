"""The heads' files: whether they are there and whole; and mending what is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from r2m.errors import Problem
from r2m_service.doctor.finding import Finding, Line, Patient, ok, problem, size, warning
from r2m_service.doctor.storage import blobs_folder
from r2m_service.domain.repair import Lineage, Repair, plan_repair
from r2m_service.domain.runs import LIVE, REFERENCE, Change
from r2m_service.registry.blobs import BlobStore
from r2m_service.registry.checkup import (
    Fault,
    files_of,
    find_faults,
    needed,
    read_lineages,
)
from r2m_service.registry.lock import hold
from r2m_service.registry.sql import SqlRegistry
from r2m_service.registry.sweep import find_orphans, old_enough, sweep

SHOWN = 5
"""Runs whose disk use is shown: those that take most."""


@dataclass(slots=True)
class _Look:
    """What was found.

    Attributes:
        repairs: by run; None where nothing is left to go on from.
        orphans: bytes of the files that nothing needs, by name.
        unknown: bytes of files of runs that the database does not know, by name.
    """

    lineages: list[Lineage]
    faults: list[Fault] = field(default_factory=list[Fault])
    repairs: dict[str, Repair | None] = field(default_factory=dict[str, Repair | None])
    orphans: dict[str, int] = field(default_factory=dict[str, int])
    unknown: dict[str, int] = field(default_factory=dict[str, int])


def check_heads(patient: Patient) -> Finding | None:
    """Whether every head that is kept is there and whole; with `repair`, mend what is not."""
    found = patient.survey
    if found is None or not patient.blobs_usable:
        return None
    if found.revision != found.wanted:
        if patient.repair:
            return problem(
                "heads", "the database has older tables: nothing was repaired", "start the server"
            )
        return None
    if not patient.repair:
        return _report(patient, _look(patient))
    try:
        unlock = hold(patient.settings.registry_location, repair=True)
    except Problem as error:
        return problem("heads", f"nothing was repaired: {error.message}", "stop the server first")
    try:
        return _repair(patient)
    finally:
        unlock()


def _look(patient: Patient) -> _Look:
    settings = patient.settings
    look = _Look(read_lineages(settings.registry_location))
    folder = blobs_folder(settings)
    # Opening a folder makes it, and looking must not.
    blobs = BlobStore(settings.blobs_url) if folder is None or folder.is_dir() else None
    sizes = {} if blobs is None else blobs.sizes()
    files = files_of(look.lineages, settings.registry_location)
    look.faults = find_faults(files, blobs, sizes, deep=patient.deep, say=patient.say)
    # The rows are read again: a server that runs may have let go of files, or written others.
    lineages = read_lineages(settings.registry_location)
    named = {one.ref.key for one in files_of(lineages, settings.registry_location)}
    look.faults = [fault for fault in look.faults if fault.key in named]
    for lineage in look.lineages:
        lost = [one for one in look.faults if one.run == lineage.run and one.lost]
        lost = [one for one in lost if one.head is not None]
        if lost:
            look.repairs[lineage.run] = plan_repair(
                lineage,
                weights=_heads(lost, "weights"),
                optimizers=_heads(lost, "optimizer"),
            )
    if blobs is not None:
        orphans = find_orphans(
            sizes,
            frozenset(named),
            frozenset(one.key for one in look.lineages),
            alone=settings.embedded,
        )
        # Whether a server runs here is not known: what is young may be about to be committed.
        look.orphans, look.unknown = (
            {name: count for name, count in some.items() if old_enough(blobs, name, alone=False)}
            for some in (orphans.mine, orphans.unknown)
        )
    return look


def _heads(faults: list[Fault], file: str) -> frozenset[int]:
    return frozenset(one.head for one in faults if one.file == file and one.head is not None)


def _repair(patient: Patient) -> Finding:
    settings = patient.settings
    look = _look(patient)
    registry = SqlRegistry(settings.registry_location)
    try:
        for lineage in look.lineages:
            repair = look.repairs.get(lineage.run)
            if repair is not None:
                patient.say(f"repairing {lineage.run}")
                registry.repair(repair, _change(lineage, repair))
        if not any(repair is None for repair in look.repairs.values()):
            # Otherwise a backup may yet be put back, and what lies there may be part of it.
            blobs = BlobStore(settings.blobs_url)
            look.orphans = sweep(registry, blobs, alone=settings.embedded)
    finally:
        registry.close()
    return _report(patient, look)


def _change(lineage: Lineage, repair: Repair) -> Change:
    detail: dict[str, object] = {
        "weights": sorted(repair.weights),
        "optimizers": sorted(repair.optimizers),
        "aliases": {name: [lineage.aliases.get(name), to] for name, to in repair.aliases.items()},
    }
    if repair.branch is not None:
        detail |= {
            "branch": repair.branch.name,
            "head": repair.branch.live,
            "step": repair.branch.step,
            "from_branch": lineage.current,
            "from_head": lineage.branches[lineage.current].live,
        }
    return Change(datetime.now(UTC), "repaired", detail, "r2m doctor --repair")


def _report(patient: Patient, look: _Look) -> Finding:
    for lineage in look.lineages:
        patient.heads += _lines(lineage, look)
    for files, found, repair in (
        (look.orphans, "needed by nothing", "removed"),
        (look.unknown, "of runs this database does not know", "kept: another may know them"),
    ):
        if files:
            what = f"{len(files)} files, {size(sum(files.values()))}"
            patient.heads.append(Line("-", None, what, found, repair))
    kept = _kept(look.lineages)
    hopeless = [run for run, repair in look.repairs.items() if repair is None]
    unread = [one for one in look.faults if not one.lost]
    if hopeless:
        return problem(
            "heads",
            f"{kept}; nothing whole is left to go on from in {', '.join(hopeless[:SHOWN])}",
            "give the right --blobs, or put a copy of the files back; nothing of it was changed",
        )
    if unread:
        return problem(
            "heads",
            f"{kept}; {len(unread)} files cannot be read, and may be whole",
            "mend the disk or the store first, then look again",
        )
    anchors = sorted({one.run for one in look.faults if one.file == "anchors"})
    if anchors:
        return problem(
            "heads",
            f"{kept}; the anchors of {', '.join(anchors[:SHOWN])} are lost, and align fails",
            "put the same set again (r2m anchors put); all else is in the table",
        )
    lost = sum(one.head is not None for one in look.faults)
    if patient.repair:
        gone = f", removed {len(look.orphans)} files that nothing needed" if look.orphans else ""
        done = f"repaired {len(look.repairs)} runs that had lost {lost} files"
        return ok("heads", f"{kept}; {done if lost else 'nothing was lost'}{gone}")
    read = "read and whole" if patient.deep else "there, of the right size (--deep reads them)"
    if not look.faults:
        return ok("heads", f"{kept}; all files are {read}{_left_over(look)}")
    if not lost:
        return warning(
            "heads",
            f"{kept}; {len(look.faults)} files beside them are missing or damaged",
            "nothing: what the table names is left out",
        )
    mend = "stop the server, save a copy, and run this with --repair"
    said = f"{kept}; {lost} files are missing or damaged, see the table{_left_over(look)}"
    if any(repair is not None and _stops(repair) for repair in look.repairs.values()):
        return problem("heads", said, mend)
    return warning("heads", said, mend)


def _stops(repair: Repair) -> bool:
    """Whether score or align fail until it is mended."""
    return repair.branch is not None or not {LIVE, REFERENCE}.isdisjoint(repair.aliases)


def _left_over(look: _Look) -> str:
    if not look.orphans:
        return ""
    return f"; {len(look.orphans)} files that nothing needs go at the next start"


def _kept(lineages: list[Lineage]) -> str:
    """Disk use by run, those that take most."""
    uses: Mapping[str, int] = {
        one.run: sum(ref.size for _, _, ref in needed(one)) for one in lineages
    }
    count = sum(head.stored for one in lineages for head in one.heads.values())
    if not count:
        return "no heads"
    most = sorted(uses, key=lambda run: uses[run], reverse=True)
    shown = ", ".join(f"{run} {size(uses[run])}" for run in most[:SHOWN])
    more = ", …" if len(most) > SHOWN else ""
    return f"{count} heads take {size(sum(uses.values()))} ({shown}{more})"


def _lines(lineage: Lineage, look: _Look) -> list[Line]:
    faults = [one for one in look.faults if one.run == lineage.run]
    if not faults:
        return []
    repair = look.repairs.get(lineage.run)
    lines = [Line(lineage.run, one.head, one.file, one.found, _done(one, repair)) for one in faults]
    if repair is None:
        return lines
    if repair.branch is not None:
        on, to = lineage.branches[lineage.current], repair.branch
        lines.append(
            Line(
                lineage.run,
                on.live,
                f"branch {on.name}",
                "cannot go on",
                f"left at step {on.step}: head {to.live} is live on branch {to.name}, step "
                f"{to.step}",
            )
        )
    for alias, head in repair.aliases.items():
        before = lineage.aliases.get(alias)
        found = "points at a lost head" if before in repair.weights else "follows live"
        where = "removed" if head is None else f"points at head {head}"
        lines.append(Line(lineage.run, before, f"alias {alias}", found, where))
    return lines


def _done(fault: Fault, repair: Repair | None) -> str:
    if not fault.lost:
        return "left as it is"
    if fault.head is None:
        return {
            "anchors": "left as it is: put the same set again",
            "sample": "left as it is: its label is not learnt from",
        }.get(fault.file, "left as it is: nobody reads it")
    if repair is None:
        return "left as it is: nothing to fall back to"
    if fault.file == "weights" or fault.head in repair.weights:
        return "the head stays in the lineage, and cannot score"
    return "the head scores, and cannot be gone back to"
