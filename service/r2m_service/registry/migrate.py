"""Bringing a database to this version's tables, at start-up and by code: users need no Alembic.

To change the tables: change `tables.py`, add `migrations/versions/NNNN_what.py` by hand (the
template beside `env.py` shows its form; NNNN counts on), and run the tests: they compare both.
A migration runs in one transaction, on SQLite too.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from r2m.errors import Code, Problem
from r2m_service.registry.engine import storage_problem

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# Not Alembic's default name: a PostgreSQL database may be shared with others that use it.
VERSION_TABLE = "r2m_schema"

# Replicas that start together migrate one after the other. Any number will do, if it stays.
_POSTGRESQL_LOCK = 0x52324D

# Alembic's `context`, which env.py uses, is one per process.
_one_at_a_time = threading.Lock()


def migrate(engine: Engine) -> None:
    """Create the tables, or change older ones to this version's; nothing where they fit.

    Raises:
        Problem: storage_failed, where a newer version made the database, or the database fails;
            it is as it was then.
    """
    config = Config()
    config.set_main_option("script_location", "r2m_service.registry:migrations")
    try:
        with _one_at_a_time, engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:number)"), {"number": _POSTGRESQL_LOCK}
                )
            _refuse_newer(connection, ScriptDirectory.from_config(config))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise storage_problem(error) from error


def _refuse_newer(connection: Connection, scripts: ScriptDirectory) -> None:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    known = {script.revision for script in scripts.walk_revisions()}
    newer = set(context.get_current_heads()) - known
    if newer:
        raise Problem(
            Code.STORAGE_FAILED,
            f"the registry's database was made by a newer version of the server (its tables are "
            f"at {', '.join(sorted(newer))}, this version knows them up to "
            f"{scripts.get_current_head()}): start that version",
        )
