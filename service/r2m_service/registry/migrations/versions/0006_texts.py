"""A run's rule for empty responses, and the date that its chat template writes.

Revision ID: 0006
Revises: 0005
Create Date: 2026-11-30
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Runs made before gave an empty response no reward: they go on like that.
    op.add_column(
        "runs",
        sa.Column("empty_response", sa.Text(), nullable=False, server_default="error"),
    )
    op.add_column("runs", sa.Column("template_date", sa.Text()))


def downgrade() -> None:
    op.drop_column("runs", "template_date")
    op.drop_column("runs", "empty_response")
