"""Looking at a registry's database without changing it: no tables made, none migrated."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, func, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError

from r2m.errors import Code, Problem
from r2m_service.registry.engine import for_reading, open_engine, storage_problem
from r2m_service.registry.migrate import VERSION_TABLE
from r2m_service.registry.tables import heads, runs

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection, Engine

_LOCK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class RunSeen:
    """A run, as far as a server's start is concerned."""

    name: str
    fingerprint: str
    archived: bool


@dataclass(frozen=True, slots=True)
class Survey:
    """What a database holds.

    Attributes:
        revision: of its tables; None where there are none yet.
        wanted: the revision of this version's tables.
        newer: whether a newer version made the database: this one refuses it.
        runs, heads: all runs, and the number of all their heads; none where the tables are not
            this version's.
        largest: bytes of the largest head with its optimizer state.
        latest: when the youngest head was made.
    """

    revision: str | None
    wanted: str
    newer: bool
    runs: tuple[RunSeen, ...] = ()
    heads: int = 0
    largest: int = 0
    latest: datetime | None = None


def sqlite_file(url: str | Path) -> Path | None:
    """The file of an SQLite database, None for any other."""
    if isinstance(url, Path):
        return url
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database
    return Path(str(parsed.database)) if is_file else None


def survey(url: str | Path) -> Survey:
    """Look at a database that exists: whether it can be written, and what it holds.

    Raises:
        Problem: storage_failed, where it cannot be opened, written or read, or is damaged.
    """
    file = sqlite_file(url)
    engine = open_existing(url)
    try:
        if file is not None:
            _check_file(engine)
        with for_reading(engine).connect() as connection:
            return _look(connection)
    except DBAPIError as error:
        raise storage_problem(error) from error
    finally:
        engine.dispose()


def _look(connection: Connection) -> Survey:
    config = Config()
    config.set_main_option("script_location", "r2m_service.registry:migrations")
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    wanted = str(scripts.get_current_head())
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    revision = ", ".join(sorted(context.get_current_heads())) or None
    if revision != wanted:
        return Survey(revision, wanted, newer=revision is not None and revision not in known)
    sizes = heads.c.weights_size + func.coalesce(heads.c.optimizer_size, 0)
    query = select(func.count(), func.max(sizes), func.max(heads.c.created_at)).select_from(heads)
    count, largest, latest = connection.execute(query).one()
    seen = connection.execute(select(runs.c.name, runs.c.fingerprint, runs.c.archived))
    return Survey(
        revision,
        wanted,
        newer=False,
        runs=tuple(RunSeen(row.name, row.fingerprint, row.archived) for row in seen),
        heads=count,
        largest=largest or 0,
        latest=latest,
    )


def open_existing(url: str | Path) -> Engine:
    """An engine for looking at a database that exists, and leaving it as it is.

    Raises:
        Problem: storage_failed, where the URL is none of ours.
    """
    file = sqlite_file(url)
    return open_engine(url, lock_timeout=_LOCK_SECONDS) if file is None else _existing(file)


def _existing(file: Path) -> Engine:
    # Unlike the registry's own engine, it makes no file (mode=rw), leaves the journal's mode as it
    # is, and opens no transaction by itself (isolation_level None).
    address = f"file:{quote(str(file.absolute()))}?mode=rw"

    def connect() -> Any:
        return sqlite3.connect(address, uri=True, timeout=_LOCK_SECONDS, isolation_level=None)

    return create_engine("sqlite://", creator=connect, poolclass=NullPool)


def _check_file(engine: Engine) -> None:
    with engine.connect() as connection:
        # Taking the writers' lock and giving it back finds a database that is read-only or locked.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.exec_driver_sql("ROLLBACK")
        # Without the lock: it reads the whole file, and a running server goes on writing.
        found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if found != "ok":
        raise Problem(Code.STORAGE_FAILED, f"the registry's database is damaged ({found})")
