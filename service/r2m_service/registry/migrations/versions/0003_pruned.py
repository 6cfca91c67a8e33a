"""When and why a head's files were let go.

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-24
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nothing was let go before.
    op.add_column("heads", sa.Column("pruned_at", sa.DateTime(timezone=True)))
    op.add_column("heads", sa.Column("pruned_why", sa.Text()))


def downgrade() -> None:
    op.drop_column("heads", "pruned_why")
    op.drop_column("heads", "pruned_at")
