"""Whose key each change was made with; changes of before do not say.

Revision ID: 0007
Revises: 0006
Create Date: 2026-11-30
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("changes", sa.Column("caller", sa.Text()))


def downgrade() -> None:
    op.drop_column("changes", "caller")
