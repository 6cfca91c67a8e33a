"""The tables: made from nothing, the same as the code's, refused where newer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from registry_makers import START, SqlRegistry, make_head, make_run, refuses
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from r2m.errors import Code
from r2m_service.domain.runs import Change
from r2m_service.registry.engine import open_engine
from r2m_service.registry.migrate import VERSION_TABLE, migrate
from r2m_service.registry.tables import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """An engine on an empty database."""
    engine = open_engine(url, lock_timeout=5)
    yield engine
    engine.dispose()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def test_migrations_make_the_tables_of_the_code(engine: Engine) -> None:
    assert tables(engine) == set()
    migrate(engine)
    assert tables(engine) == {*metadata.tables, VERSION_TABLE}
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": VERSION_TABLE,
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        assert compare_metadata(context, metadata) == []


def test_migrations_make_the_very_statements_of_the_code(tmp_path: Path) -> None:
    """Names of constraints too, which Alembic does not compare on SQLite."""
    made: list[dict[str, str]] = []
    for name in ("migrated", "created"):
        engine = open_engine(tmp_path / name, lock_timeout=5)
        if name == "migrated":
            migrate(engine)
        else:
            metadata.create_all(engine)
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql NOTNULL"))
            made.append({row.name: _clauses(row.sql) for row in rows if row.name != VERSION_TABLE})
        engine.dispose()
    assert made[0] == made[1]
    assert made[0].keys() == metadata.tables.keys()


def _clauses(statement: str) -> list[str]:
    """A column that was added later stands elsewhere, with other white space."""
    return sorted(part.strip(" ()") for part in " ".join(statement.split()).split(", "))


def test_migrating_again_changes_nothing(engine: Engine) -> None:
    migrate(engine)
    with engine.begin() as connection:
        version = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).all()
    migrate(engine)
    with engine.begin() as connection:
        again = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).all()
    assert version == again
    assert len(version) == 1


def test_a_newer_database_is_refused_and_left_alone(engine: Engine, url: str) -> None:
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with refuses(Code.STORAGE_FAILED, "newer version of the server", "9999", "start that version"):
        SqlRegistry(url)
    with engine.begin() as connection:
        version = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one()
    assert version == "9999"


def test_a_migration_that_fails_leaves_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE steps (x INTEGER)"))  # the last one it makes
    with refuses(Code.STORAGE_FAILED):
        migrate(engine)
    assert tables(engine) == {"steps"}
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE steps"))
    migrate(engine)
    assert tables(engine) == {*metadata.tables, VERSION_TABLE}


def test_replicas_may_start_together(url: str) -> None:
    opened = open_together([url] * 4)
    opened[0].create_run(make_run(), make_head())
    for registry in opened:
        assert len(registry.run_states()) == 1
        registry.close()


def test_databases_may_be_made_together(tmp_path: Path) -> None:
    for registry in open_together([tmp_path / f"{n}.db" for n in range(4)]):
        assert registry.run_states() == []
        registry.close()


def open_together(urls: Sequence[str | Path]) -> list[SqlRegistry]:
    barrier = threading.Barrier(len(urls))

    def start(url: str | Path) -> SqlRegistry:
        barrier.wait()
        return SqlRegistry(url)

    with ThreadPoolExecutor(len(urls)) as pool:
        return list(pool.map(start, urls))


def test_the_first_migration_can_be_undone(engine: Engine) -> None:
    migrate(engine)
    config = Config()
    config.set_main_option("script_location", "r2m_service.registry:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert tables(engine) == {VERSION_TABLE}
    migrate(engine)
    assert tables(engine) == {*metadata.tables, VERSION_TABLE}


def test_runs_of_before_controls_have_none(url: str) -> None:
    """Read as they are, and the create that made one still finds it."""
    method = asdict(make_run().method)
    registry = SqlRegistry(url)
    created = Change(START, "created", {"feedback": "policy", "method": method}, caller="ops")
    registry.create_run(make_run(), make_head(), created)
    registry.close()
    engine = open_engine(url, lock_timeout=5)
    config = Config()
    config.set_main_option("script_location", "r2m_service.registry:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0004")
        for column, table in (("method", "runs"), ("detail", "changes")):
            (stored,) = connection.execute(text(f"SELECT {column} FROM {table}")).scalars()
            assert "controls" not in stored
            assert '"judge_share"' in stored
    engine.dispose()
    registry = SqlRegistry(url)
    state = registry.run_state("tldr")
    assert state is not None
    assert state.run.method == make_run().method
    (change,) = registry.changes("tldr")
    assert change == replace(created, caller=None)  # 0007 added the column
    registry.close()


@pytest.mark.parametrize("table", ["runs", "heads", "branches", "aliases", "steps"])
def test_keys_are_unique_in_the_database_itself(
    registry: SqlRegistry, engine: Engine, table: str
) -> None:
    """Exactly-once rests on these, whatever the code above them does."""
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO steps VALUES ('tldr', 'main', 1, 'h', 'a', 0, '2026-01-01 00:00:00')")
        )
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text(f"INSERT INTO {table} SELECT * FROM {table}"))
