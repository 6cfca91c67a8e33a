"""Registries for the tests, each in a database of its own.

SQLite by default. With R2M_TEST_DATABASE_URL set to a PostgreSQL server's URL, the tests that are
not about SQLite itself run there instead, each in a schema that is dropped afterwards.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import pytest
from registry_makers import SqlRegistry, make_head, make_run
from sqlalchemy import create_engine, make_url, text

from r2m_service.registry.blobs import BlobStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """An empty database."""
    server = os.environ.get("R2M_TEST_DATABASE_URL")
    if server is None:
        yield f"sqlite:///{tmp_path / 'state' / 'registry.db'}"
        return
    schema = f"r2m_{secrets.token_hex(6)}"
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    options = {"options": f"-csearch_path={schema}"}
    yield make_url(server).update_query_dict(options).render_as_string(hide_password=False)
    with engine.begin() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()


@pytest.fixture
def empty(url: str) -> Iterator[SqlRegistry]:
    """A registry without runs."""
    registry = SqlRegistry(url)
    yield registry
    registry.close()


@pytest.fixture
def registry(empty: SqlRegistry) -> SqlRegistry:
    """A registry with the run `tldr`, which stands at step 0."""
    empty.create_run(make_run(), make_head())
    return empty


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    """Where the SQLite file of `sqlite` is."""
    return tmp_path / "new" / "state" / "registry.db"


@pytest.fixture
def sqlite(sqlite_file: Path) -> Iterator[SqlRegistry]:
    """A registry in SQLite, with the run `tldr`, that waits for locks only 50 ms."""
    registry = SqlRegistry(sqlite_file, lock_timeout=0.05)
    registry.create_run(make_run(), make_head())
    yield registry
    registry.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the files of `blobs` are."""
    return tmp_path / "new" / "blobs"


@pytest.fixture
def blobs(folder: Path) -> BlobStore:
    """A blob store in a folder."""
    return BlobStore(str(folder))
