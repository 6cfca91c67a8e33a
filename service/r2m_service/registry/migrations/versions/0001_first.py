"""Runs, heads, branches, aliases and answered steps.

Revision ID: 0001
Revises:
Create Date: 2026-11-23
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "runs",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("feedback", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("current_branch", sa.Text(), nullable=False),
        sa.Column("archived", sa.Boolean(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_runs"),
        sa.UniqueConstraint("key", name="uq_runs_key"),
    )
    op.create_table(
        "heads",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("parent", sa.BigInteger()),
        sa.Column("branch", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("t", sa.BigInteger(), nullable=False),
        sa.Column("omega", sa.Double(), nullable=False),
        sa.Column("reference", sa.BigInteger(), nullable=False),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("weights_key", sa.Text(), nullable=False),
        sa.Column("weights_sha256", sa.Text(), nullable=False),
        sa.Column("weights_size", sa.BigInteger(), nullable=False),
        sa.Column("optimizer_key", sa.Text()),
        sa.Column("optimizer_sha256", sa.Text()),
        sa.Column("optimizer_size", sa.BigInteger()),
        sa.PrimaryKeyConstraint("run", "number", name="pk_heads"),
        sa.ForeignKeyConstraint(["run"], ["runs.name"], name="fk_heads_run"),
        sa.ForeignKeyConstraint(
            ["run", "parent"], ["heads.run", "heads.number"], name="fk_heads_run_parent"
        ),
        sa.ForeignKeyConstraint(
            ["run", "reference"], ["heads.run", "heads.number"], name="fk_heads_run_reference"
        ),
    )
    op.create_table(
        "branches",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("live", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("origin_branch", sa.Text()),
        sa.Column("origin_head", sa.BigInteger()),
        sa.Column("origin_step", sa.BigInteger()),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("run", "name", name="pk_branches"),
        sa.ForeignKeyConstraint(["run"], ["runs.name"], name="fk_branches_run"),
        sa.ForeignKeyConstraint(
            ["run", "live"], ["heads.run", "heads.number"], name="fk_branches_run_live"
        ),
        sa.ForeignKeyConstraint(
            ["run", "origin_head"],
            ["heads.run", "heads.number"],
            name="fk_branches_run_origin_head",
        ),
        sa.ForeignKeyConstraint(
            ["run", "origin_branch"],
            ["branches.run", "branches.name"],
            name="fk_branches_run_origin_branch",
        ),
    )
    op.create_table(
        "aliases",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("head", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run", "alias", name="pk_aliases"),
        sa.ForeignKeyConstraint(
            ["run", "head"], ["heads.run", "heads.number"], name="fk_aliases_run_head"
        ),
    )
    op.create_table(
        "steps",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("branch", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("live_after", sa.BigInteger(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("run", "branch", "step", name="pk_steps"),
        sa.ForeignKeyConstraint(
            ["run", "branch"], ["branches.run", "branches.name"], name="fk_steps_run_branch"
        ),
        sa.ForeignKeyConstraint(
            ["run", "live_after"], ["heads.run", "heads.number"], name="fk_steps_run_live_after"
        ),
    )


def downgrade() -> None:
    for table in ("steps", "aliases", "branches", "heads", "runs"):
        op.drop_table(table)
