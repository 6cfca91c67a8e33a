"""Who works on a registry: one server on an SQLite file, any number on PostgreSQL, or a repair.

The lock goes with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from r2m.errors import Code, Problem
from r2m_service.registry.engine import open_engine, storage_problem
from r2m_service.registry.folder import make_folders
from r2m_service.registry.survey import sqlite_file

if TYPE_CHECKING:
    from pathlib import Path

_POSTGRESQL_LOCK = 0x52324D  # any number will do, if it stays
_CONNECT_SECONDS = 10.0


def hold(location: str | Path, *, repair: bool = False) -> Callable[[], None]:
    """Take the lock of a database, and say how to give it back.

    Args:
        location: as the registry's.
        repair: alone, also on PostgreSQL, where servers hold it together.

    Raises:
        Problem: storage_failed, where another process holds it, or it cannot be taken.
    """
    file = sqlite_file(location)
    if file is None:
        return _hold_postgresql(location, repair=repair)
    return _hold_file(_beside(file))


def holder(location: str | Path) -> str | None:
    """The process that works on an SQLite file; None where none does, and for other databases.

    Makes no file. A server that starts at this very moment may be refused.
    """
    file = sqlite_file(location)
    try:
        descriptor = os.open(_beside(file), os.O_RDONLY | os.O_CLOEXEC) if file else None
    except OSError:
        return None
    if descriptor is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.lock")


def _named(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "(unknown)"
    return "(unknown)"


def _hold_file(path: Path) -> Callable[[], None]:
    try:
        make_folders(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise Problem(Code.STORAGE_FAILED, f"{path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        who = _named(descriptor)
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise Problem(
                Code.STORAGE_FAILED, f"{path} cannot be locked: {error.strerror}"
            ) from error
        raise Problem(
            Code.STORAGE_FAILED,
            f"process {who} works on {path.with_suffix('')}: one server at a time "
            "uses an SQLite file, several share PostgreSQL",
        ) from None
    # For people; the lock itself is the system's, and the file stays: removing it would let two
    # processes lock two files of one name.
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return lambda: os.close(descriptor)


def _hold_postgresql(location: str | Path, *, repair: bool) -> Callable[[], None]:
    engine = open_engine(location, lock_timeout=_CONNECT_SECONDS)
    how = "pg_try_advisory_lock" if repair else "pg_try_advisory_lock_shared"
    try:
        # A connection of its own, without a transaction: the lock is the session's.
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        taken = connection.execute(
            text(f"SELECT {how}(:number, hashtext(current_schema()))"),
            {"number": _POSTGRESQL_LOCK},
        ).scalar_one()
    except DBAPIError as error:
        engine.dispose()
        raise storage_problem(error) from error

    def release() -> None:
        connection.invalidate()  # closed, not kept for the next: the lock would stay
        connection.close()
        engine.dispose()

    if not taken:
        release()
        who = "a server runs" if repair else "r2m doctor is repairing"
        raise Problem(Code.STORAGE_FAILED, f"{who} on the registry's database")
    return release
