"""Anchors, outside labels, freezing, and the settings that go with them.

Revision ID: 0004
Revises: 0003
Create Date: 2026-11-24
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from r2m_service.registry.rewriting import rewrite_settings

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# What runs made before go on with: none of it.
GATE: dict[str, Any] = {
    "anchors_every": None,
    "anchors_margin": 0.02,
    "anchors_alpha": 0.05,
    "anchors_looks": 20,
    "undecided": "hold",
    "freeze_after": None,
    "reference": "fixed",
}
METHOD: dict[str, Any] = {
    "replay_groups": 0,
    "audit_rate": 0.0,
    "judge_share": 0.5,
    "freeze_on_alarm": False,
}
# What the request that made a `guarded` run asks for now: sent again, it must find its run.
GUARDED: dict[str, Any] = {"anchors_every": 10, "freeze_after": 5}


def upgrade() -> None:
    op.add_column("runs", sa.Column("frozen", sa.Text()))
    op.add_column("runs", sa.Column("audit", sa.Text(), nullable=False, server_default="{}"))
    op.add_column(
        "branches", sa.Column("rejections", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.create_table(
        "anchor_sets",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("pairs", sa.BigInteger(), nullable=False),
        sa.Column("looks", sa.BigInteger(), nullable=False),
        sa.Column("file_key", sa.Text(), nullable=False),
        sa.Column("file_sha256", sa.Text(), nullable=False),
        sa.Column("file_size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("run", "number", name="pk_anchor_sets"),
        sa.ForeignKeyConstraint(["run"], ["runs.name"], name="fk_anchor_sets_run"),
    )
    op.create_table(
        "samples",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("group", sa.Text(), nullable=False),
        sa.Column("use", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("head", sa.BigInteger(), nullable=False),
        sa.Column("branch", sa.Text(), nullable=False),
        sa.Column("reward", sa.Double(), nullable=False),
        sa.Column("vanilla_reward", sa.Double(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("feedback", sa.Text()),
        sa.Column("file_key", sa.Text()),
        sa.Column("file_sha256", sa.Text()),
        sa.Column("file_size", sa.BigInteger()),
        sa.PrimaryKeyConstraint("run", "number", name="pk_samples"),
        sa.UniqueConstraint("run", "id", name="uq_samples_run_id"),
        sa.ForeignKeyConstraint(["run"], ["runs.name"], name="fk_samples_run"),
    )
    op.create_table(
        "labels",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("sample", sa.Text(), nullable=False),
        sa.Column("loser", sa.Text(), nullable=False),
        sa.Column("grade", sa.Double()),
        sa.Column("source", sa.Text()),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("run", "number", name="pk_labels"),
        sa.UniqueConstraint("run", "sample", "loser", name="uq_labels_run_sample_loser"),
        sa.ForeignKeyConstraint(["run"], ["runs.name"], name="fk_labels_run"),
    )
    op.create_table(
        "trained",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run", "prompt", name="pk_trained"),
        sa.ForeignKeyConstraint(["run"], ["runs.name"], name="fk_trained_run"),
    )
    rewrite_settings(_with_more)


def _with_more(method: dict[str, Any], *, created: bool) -> dict[str, Any]:
    guarded = created and method["profile"] == "guarded"
    more = {**METHOD, "replay_groups": 64} if guarded else METHOD
    gate = {**GATE, **GUARDED} if guarded else GATE
    return {**method, **more, "gate": {**method["gate"], **gate}}


def _with_less(method: dict[str, Any], *, created: bool) -> dict[str, Any]:
    return {
        **{key: value for key, value in method.items() if key not in METHOD},
        "gate": {key: value for key, value in method["gate"].items() if key not in GATE},
    }


def downgrade() -> None:
    rewrite_settings(_with_less)
    for table in ("trained", "labels", "samples", "anchor_sets"):
        op.drop_table(table)
    op.drop_column("branches", "rejections")
    op.drop_column("runs", "audit")
    op.drop_column("runs", "frozen")
