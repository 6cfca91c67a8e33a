"""What every part of the registry stands on: an engine, and one transaction a call."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from r2m_service.registry.engine import for_reading, is_duplicate, open_engine, storage_problem
from r2m_service.registry.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from sqlalchemy import Connection

    from r2m.errors import Problem


class Transactions:
    """A database, opened and brought to this version's tables.

    Args:
        url: `postgresql://…`, `sqlite:///file`, or the Path of an SQLite file. Tables are made,
            or changed to this version's.
        lock_timeout: seconds to wait for another writer before storage_failed.

    Raises:
        Problem: storage_failed, where the database cannot be opened, or a newer version made it.
    """

    def __init__(self, url: str | Path, *, lock_timeout: float = 10.0) -> None:
        self._engine = open_engine(url, lock_timeout=lock_timeout)
        self._reader = for_reading(self._engine)
        try:
            migrate(self._engine)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Generator[Connection]:
        try:
            with self._reader.begin() as connection:
                yield connection
        except (DBAPIError, PoolTimeoutError) as error:
            raise storage_problem(error) from error

    @contextmanager
    def _writing(self, *, conflict: Problem | None = None) -> Generator[Connection]:
        """One transaction; what a unique key refuses is `conflict`."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except (DBAPIError, PoolTimeoutError) as error:
            if conflict is not None and is_duplicate(error):
                raise conflict from error
            raise storage_problem(error) from error
