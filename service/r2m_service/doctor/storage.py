"""The registry: state folder, database, blobs, disk."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from r2m.errors import Problem
from r2m_service.doctor.finding import Finding, Patient, ok, problem, size, warning
from r2m_service.domain.method import PAPER_WIDTH
from r2m_service.registry.blobs import BlobStore
from r2m_service.registry.lock import holder
from r2m_service.registry.survey import sqlite_file, survey
from r2m_service.settings import Settings, shown

HEADS_OF_ROOM = 10


def check_state(patient: Patient) -> Finding | None:
    """Whether the state folder can be written, or made."""
    settings = patient.settings
    if settings.registry and settings.blobs:
        return None  # nothing is kept there
    state = settings.state
    why = _refusal(state)
    if why is not None:
        patient.state_usable = False
        return problem("state", f"{state} cannot be used: {why}", "give a folder with --state")
    return ok("state", _can(state))


def check_database(patient: Patient) -> Finding | None:
    """Whether the database opens, can be written, and has tables that this version knows."""
    settings = patient.settings
    if "registry" in patient.missing or (not settings.registry and not patient.state_usable):
        return None
    where = str(shown("registry", settings.registry) or settings.registry_location)
    file = sqlite_file(settings.registry_location)
    if file is not None and not file.exists():
        why = _refusal(file.parent)
        if why is not None:
            return problem("database", f"{where} cannot be made: {why}", "change --registry")
        return ok("database", f"{where} is not there yet: the server will make it")
    try:
        found = survey(settings.registry_location)
    except Problem as error:
        return problem("database", f"{error.message} ({where})", _mend_database(file))
    if found.newer:
        return problem(
            "database",
            f"{where} was made by a newer version of the server (its tables are at "
            f"{found.revision}, this version knows them up to {found.wanted})",
            "start that version, or give another --state or --registry",
        )
    patient.survey = found
    if found.revision is None:
        return ok("database", f"{where} has no tables yet: the server will make them")
    if found.revision != found.wanted:
        return warning(
            "database",
            f"{where} has tables of an older version ({found.revision}): the server will change "
            f"them to {found.wanted}, and older versions will refuse them then",
            "save a copy first",
        )
    process = holder(settings.registry_location)
    if process is not None:
        return problem(
            "database",
            f"process {process} works on {where}: a second server would be refused",
            "end it first, or give another --state; to look at heads beside it is fine",
        )
    return ok("database", f"{where} opens, its tables are current ({found.revision})")


def check_runs(patient: Patient) -> Finding | None:
    """What is kept, and whether the model fits it."""
    found = patient.survey
    if found is None or found.revision != found.wanted:
        return None
    kept = f"{len(found.runs)} runs, {found.heads} heads"
    if patient.backbone is None:
        return ok("runs", f"{kept}; not compared with the model, which is not loaded")
    mine = patient.backbone.fingerprint
    others = [run.name for run in found.runs if not run.archived and run.fingerprint != mine]
    if others:
        named = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        return warning(
            "runs",
            f"{kept}; {len(others)} of another model, or of this one with another dtype, maximum "
            f"length, chat template or template date ({named}): they can only be read",
            "serve them with the model and the settings they were made with",
        )
    return ok("runs", kept)


def check_blobs(patient: Patient) -> Finding | None:
    """Whether a file can be written, read back, and removed."""
    settings = patient.settings
    if "blobs" in patient.missing or (not settings.blobs and not patient.state_usable):
        patient.blobs_usable = False
        return None
    where = str(shown("blobs", settings.blobs) or settings.blobs_url)
    folder = blobs_folder(settings)
    mend = "give a folder or an fsspec URL that can be written with --blobs"
    try:
        if folder is None or folder.is_dir():
            BlobStore(settings.blobs_url).try_out()
            return ok("blobs", f"{where}: written, read back, removed")
        # What is not there yet is not made: its place is tried instead.
        with tempfile.TemporaryDirectory(prefix=".r2m-doctor-", dir=_existing(folder)) as trial:
            BlobStore(trial).try_out()
    except (Problem, OSError) as error:
        why = error.message if isinstance(error, Problem) else error.strerror
        patient.blobs_usable = False
        return problem("blobs", f"{where}: {why}", mend)
    return ok("blobs", f"{where} is not there yet: the server will make it")


def check_disk(patient: Patient) -> Finding | None:
    """Whether there is room for some heads."""
    folder = blobs_folder(patient.settings)
    if folder is None or (not patient.settings.blobs and not patient.state_usable):
        return None
    free = shutil.disk_usage(_existing(folder)).free
    kept = patient.survey.largest if patient.survey else 0
    one = kept or _typical_head(patient)
    what = "the largest head so far" if kept else f"a head of width {PAPER_WIDTH}"
    found = f"{size(free)} free; {what} takes {size(one)} with its optimizer state"
    mend = "free some, or keep heads elsewhere with --blobs"
    if free < one:
        return problem("disk", found, mend)
    if free < HEADS_OF_ROOM * one:
        return warning("disk", f"{found}: room for {free // one}", mend)
    return ok("disk", found)


def check_journal(patient: Patient) -> Finding | None:
    """Whether the journal's folder can be written, or made."""
    folder = patient.settings.journal
    if folder is None:
        return None
    why = _refusal(folder)
    if why is not None:
        return problem(
            "journal", f"the journal cannot be written: {why}", "give a folder with --journal"
        )
    return ok("journal", _can(folder))


def _can(folder: Path) -> str:
    return f"{folder.absolute()} can be {'written' if folder.is_dir() else 'made'}"


def _typical_head(patient: Patient) -> int:
    # 4·2·d·(D_p + D_rm) bytes and twice that for Adam; a policy as wide as the reward model.
    width = 4096
    if patient.config is not None:
        from r2m_service.modeling.limits import width_of  # torch comes with it

        width = width_of(patient.config)
    return 3 * 4 * 2 * PAPER_WIDTH * (width + width)


def blobs_folder(settings: Settings) -> Path | None:
    """The local folder of the heads' files; None where they lie in an object store."""
    url = settings.blobs_url
    if url.startswith("file://"):
        return Path(unquote(urlsplit(url).path))
    return None if "://" in url else Path(url)


def _mend_database(file: Path | None) -> str:
    if file is None:
        return "mend --registry: postgresql://USER:PASSWORD@HOST/DATABASE"
    return (
        "if another process holds it, wait or end that; if it is damaged, put a copy back, or "
        f"move {file} away: the server then starts with no runs, and their heads' files stay"
    )


def _refusal(folder: Path) -> str | None:
    """Why a folder cannot be written, or made; None where it can."""
    there = folder
    try:
        there = _existing(folder)
        with tempfile.TemporaryDirectory(prefix=".r2m-doctor-", dir=there):
            return None
    except OSError as error:
        return f"{there}: {error.strerror}"


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return there
