"""A run's truncation rule, and its audit trail.

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-23
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Runs made before could not be cut: theirs is the rule that refuses.
    op.add_column("runs", sa.Column("truncation", sa.Text(), nullable=False, server_default="none"))
    op.create_table(
        "changes",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("run", "number", name="pk_changes"),
        sa.ForeignKeyConstraint(["run"], ["runs.name"], name="fk_changes_run"),
    )


def downgrade() -> None:
    op.drop_table("changes")
    op.drop_column("runs", "truncation")
