"""Opening the database, and what its failures are called.

SQLite is embedded: one file, written ahead (WAL) and put on disk at every commit. PostgreSQL is
for several replicas. Nothing above this module knows which one it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from r2m.errors import Code, Problem
from r2m_service.registry.folder import make_folders

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.exc import SQLAlchemyError

_READS = "r2m_reads"
_POSTGRESQL = {"postgresql+psycopg": "psycopg", "postgresql+psycopg2": "psycopg2"}
"""Drivers of PostgreSQL by SQLAlchemy's names, and the module that each one imports."""
_CONNECT_SECONDS = 10


def driver_module(url: str | Path) -> str | None:
    """The module that speaks to a database; None for SQLite, and where `open_engine` refuses."""
    try:
        return _POSTGRESQL.get(_parsed(url).drivername)
    except Problem:
        return None


def open_engine(url: str | Path, *, lock_timeout: float) -> Engine:
    """An engine on which every transaction may write, and holds what it needs from its start.

    Args:
        url: `postgresql://…`, `sqlite:///file`, or the Path of an SQLite file, whose folder is
            made where it is missing.
        lock_timeout: seconds to wait for another writer.

    Raises:
        Problem: storage_failed, where the URL is none of these, its driver is not installed, or
            the folder cannot be made.
    """
    parsed = _parsed(url)
    try:
        if parsed.drivername in {"sqlite", "sqlite+pysqlite"}:
            return _sqlite(parsed, lock_timeout)
        if parsed.drivername in _POSTGRESQL:
            return _postgresql(parsed, lock_timeout)
    except ModuleNotFoundError as error:
        raise Problem(
            Code.STORAGE_FAILED,
            f"the registry's database needs the package {error.name}, which is not installed",
        ) from error
    raise Problem(
        Code.STORAGE_FAILED,
        f"the registry's database is sqlite or postgresql, not {parsed.drivername}",
    )


def _parsed(url: str | Path) -> URL:
    if isinstance(url, Path):
        return URL.create("sqlite", database=str(url))
    try:
        parsed = make_url(url)
    except ArgumentError:
        # Without the cause: it may quote the password.
        raise Problem(Code.STORAGE_FAILED, "the registry's database URL is not one") from None
    if parsed.drivername in {"postgres", "postgresql"}:
        # SQLAlchemy's own default driver differs between its versions.
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def for_reading(engine: Engine) -> Engine:
    """The same engine, whose transactions only read, and see one state of the database."""
    if engine.dialect.name == "postgresql":
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return engine.execution_options(**{_READS: True})


def _sqlite(url: URL, lock_timeout: float) -> Engine:
    if not url.database or ":memory:" in url.database or url.query.get("mode") == "memory":
        raise Problem(
            Code.STORAGE_FAILED, "the registry's database is a file: one in memory would be lost"
        )
    folder = Path(url.database).parent
    try:
        make_folders(folder)
    except OSError as error:
        raise Problem(
            Code.STORAGE_FAILED,
            f"the registry's folder {str(folder)!r} cannot be made: {error.strerror}",
        ) from error
    engine = create_engine(
        url,
        hide_parameters=True,
        poolclass=QueuePool,
        connect_args={"timeout": lock_timeout},
    )

    def connected(connection: Any, _record: object) -> None:
        # sqlite3 would begin transactions on its own, late and not for every statement: with None
        # it leaves them to us (SQLAlchemy's documentation of pysqlite).
        connection.isolation_level = None
        cursor = connection.cursor()
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            # FULL puts every commit on disk; NORMAL would lose the last ones with the power.
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.execute("PRAGMA foreign_keys = ON")
        finally:
            cursor.close()

    def begun(connection: Connection) -> None:
        # A transaction that reads first and writes later cannot wait for a lock: SQLite refuses it
        # at once if another wrote in between. So writers take the lock at their start.
        reads = connection.get_execution_options().get(_READS, False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)
    return engine


def _postgresql(url: URL, lock_timeout: float) -> Engine:
    engine = create_engine(
        url,
        hide_parameters=True,
        # A restarted database breaks the connections that were open: they are tried before use.
        pool_pre_ping=True,
        connect_args={"connect_timeout": url.query.get("connect_timeout", _CONNECT_SECONDS)},
    )

    def connected(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {max(1, round(lock_timeout * 1000))}")
        connection.commit()

    event.listen(engine, "connect", connected)
    return engine


# By SQLite's name of the error (its start), then by PostgreSQL's SQLSTATE (its start).
_SENTENCES = {
    "SQLITE_BUSY": "is locked by another process",
    "SQLITE_LOCKED": "is locked by another process",
    "SQLITE_FULL": "cannot be written: the disk is full",
    "SQLITE_READONLY": "cannot be written: it is read-only",
    "SQLITE_CANTOPEN": "cannot be opened",
    "SQLITE_CORRUPT": "is damaged",
    "SQLITE_NOTADB": "is damaged, or no database",
    "SQLITE_IOERR": "cannot be read or written: the disk failed",
    "SQLITE_CONSTRAINT": "refused a change that contradicts what it holds",
    "08": "cannot be reached",
    "23": "refused a change that contradicts what it holds",
    "25006": "cannot be written: it is read-only",
    "28": "refused the user or the password",
    "3D": "does not exist",
    "42501": "does not allow this user to do that",
    "53100": "cannot be written: the disk is full",
    "53300": "takes no more connections",
    "55P03": "is locked by another process",
    "57P": "cannot be reached: it is stopping or starting",
}


def storage_problem(error: SQLAlchemyError) -> Problem:
    """A database's failure in one sentence that names neither SQL nor values."""
    code = _code(error)
    for start, sentence in _SENTENCES.items():
        if code.startswith(start):
            return Problem(Code.STORAGE_FAILED, f"the registry's database {sentence}")
    if isinstance(error, OperationalError) and not code:
        # No code at all: the driver could not connect, and does not say why in a form to rely on.
        return Problem(
            Code.STORAGE_FAILED,
            "the registry's database cannot be connected to: is it up, and are the URL's address, "
            "database, user and password right?",
        )
    kind = code or type(error).__name__
    return Problem(Code.STORAGE_FAILED, f"the registry's database failed ({kind})")


def is_duplicate(error: SQLAlchemyError) -> bool:
    """Whether a unique key refused the change: somebody else came first."""
    return _code(error) in {
        "SQLITE_CONSTRAINT_PRIMARYKEY",
        "SQLITE_CONSTRAINT_UNIQUE",
        "23505",
    }


def _code(error: SQLAlchemyError) -> str:
    """SQLite's name of the error or PostgreSQL's SQLSTATE; '' where there is neither."""
    if isinstance(error, DBAPIError):
        for name in ("sqlite_errorname", "sqlstate", "pgcode"):
            code = getattr(error.orig, name, None)
            if code:
                return str(code)
    return ""
