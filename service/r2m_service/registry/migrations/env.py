"""Alembic's entry: runs the migrations on the connection that `migrate` gives, in its transaction.

There is no offline mode and no ini file: the server itself migrates when it starts.
"""

from __future__ import annotations

from alembic import context

from r2m_service.registry.migrate import VERSION_TABLE
from r2m_service.registry.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
# The transaction is `migrate`'s: Alembic opens none inside it, on SQLite too.
with context.begin_transaction():
    context.run_migrations()
