"""The registry's tables. `migrations/` builds the same ones; a test compares the two.

Only what SQLite and PostgreSQL both do is used. Settings and metrics are JSON kept as text: they
are read whole and never searched.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKeyConstraint,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

if TYPE_CHECKING:
    from sqlalchemy import Dialect


class Utc(TypeDecorator[datetime]):
    """A moment: aware on the way in, UTC on the way out.

    SQLite keeps no time zone, and PostgreSQL answers in the session's: both become UTC here.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC. A naive time is refused: nobody could say which moment it means."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To an aware time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# Every constraint has a name, so that later migrations can drop it on either database.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# A run keeps its name when it is archived, so a name is never given twice. `current_branch` is no
# foreign key: runs and branches would need each other to exist first.
runs = Table(
    "runs",
    metadata,
    Column("name", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("feedback", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("current_branch", Text, nullable=False),
    Column("archived", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("truncation", Text, nullable=False, server_default="none"),
    Column("empty_response", Text, nullable=False, server_default="error"),
    Column("template_date", Text),
    Column("frozen", Text),
    Column("audit", Text, nullable=False, server_default="{}"),
    PrimaryKeyConstraint("name"),
    UniqueConstraint("key"),
)

# `branch` is no foreign key: a branch points at its live head, and the head comes first. A head's
# row is never removed: `pruned_at` says when its files were let go, and the optimizer's columns
# are null once that file was.
heads = Table(
    "heads",
    metadata,
    Column("run", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("parent", BigInteger),
    Column("branch", Text, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("t", BigInteger, nullable=False),
    Column("omega", Double, nullable=False),
    Column("reference", BigInteger, nullable=False),
    Column("accepted", Boolean, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("metrics", Text, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("weights_key", Text, nullable=False),
    Column("weights_sha256", Text, nullable=False),
    Column("weights_size", BigInteger, nullable=False),
    Column("optimizer_key", Text),
    Column("optimizer_sha256", Text),
    Column("optimizer_size", BigInteger),
    Column("pruned_at", Utc),
    Column("pruned_why", Text),
    PrimaryKeyConstraint("run", "number"),
    ForeignKeyConstraint(["run"], ["runs.name"]),
    ForeignKeyConstraint(["run", "parent"], ["heads.run", "heads.number"]),
    ForeignKeyConstraint(["run", "reference"], ["heads.run", "heads.number"]),
)

branches = Table(
    "branches",
    metadata,
    Column("run", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("live", BigInteger, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("origin_branch", Text),
    Column("origin_head", BigInteger),
    Column("origin_step", BigInteger),
    Column("reason", Text),
    Column("rejections", BigInteger, nullable=False, server_default="0"),
    PrimaryKeyConstraint("run", "name"),
    ForeignKeyConstraint(["run"], ["runs.name"]),
    ForeignKeyConstraint(["run", "live"], ["heads.run", "heads.number"]),
    ForeignKeyConstraint(["run", "origin_head"], ["heads.run", "heads.number"]),
    ForeignKeyConstraint(["run", "origin_branch"], ["branches.run", "branches.name"]),
)

aliases = Table(
    "aliases",
    metadata,
    Column("run", Text, nullable=False),
    Column("alias", Text, nullable=False),
    Column("head", BigInteger, nullable=False),
    PrimaryKeyConstraint("run", "alias"),
    ForeignKeyConstraint(["run", "head"], ["heads.run", "heads.number"]),
)

steps = Table(
    "steps",
    metadata,
    Column("run", Text, nullable=False),
    Column("branch", Text, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("live_after", BigInteger, nullable=False),
    Column("created_at", Utc, nullable=False),
    PrimaryKeyConstraint("run", "branch", "step"),
    ForeignKeyConstraint(["run", "branch"], ["branches.run", "branches.name"]),
    ForeignKeyConstraint(["run", "live_after"], ["heads.run", "heads.number"]),
)

# The audit trail: what people changed, numbered from 0 within a run.
changes = Table(
    "changes",
    metadata,
    Column("run", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("at", Utc, nullable=False),
    Column("what", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("reason", Text),
    Column("caller", Text),
    PrimaryKeyConstraint("run", "number"),
    ForeignKeyConstraint(["run"], ["runs.name"]),
)

# Sets of held-out pairs, numbered from 1 within a run; the newest judges.
anchor_sets = Table(
    "anchor_sets",
    metadata,
    Column("run", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("pairs", BigInteger, nullable=False),
    Column("looks", BigInteger, nullable=False),
    Column("file_key", Text, nullable=False),
    Column("file_sha256", Text, nullable=False),
    Column("file_size", BigInteger, nullable=False),
    Column("created_at", Utc, nullable=False),
    PrimaryKeyConstraint("run", "number"),
    ForeignKeyConstraint(["run"], ["runs.name"]),
)

# Scored samples that wait for an outside label, and those that have one. Bounded: old ones go.
samples = Table(
    "samples",
    metadata,
    Column("run", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("id", Text, nullable=False),
    Column("group", Text, nullable=False),
    Column("use", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("head", BigInteger, nullable=False),
    Column("branch", Text, nullable=False),
    Column("reward", Double, nullable=False),
    Column("vanilla_reward", Double, nullable=False),
    Column("text", Text, nullable=False),
    Column("at", Utc, nullable=False),
    Column("feedback", Text),
    Column("file_key", Text),
    Column("file_sha256", Text),
    Column("file_size", BigInteger),
    PrimaryKeyConstraint("run", "number"),
    UniqueConstraint("run", "id"),
    ForeignKeyConstraint(["run"], ["runs.name"]),
)

# What was said of them, for good: no foreign key, since a label outlives its sample. `loser` is
# the worse sample of a preference, and empty for a grade.
labels = Table(
    "labels",
    metadata,
    Column("run", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("sample", Text, nullable=False),
    Column("loser", Text, nullable=False),
    Column("grade", Double),
    Column("source", Text),
    Column("at", Utc, nullable=False),
    PrimaryKeyConstraint("run", "number"),
    UniqueConstraint("run", "sample", "loser"),
    ForeignKeyConstraint(["run"], ["runs.name"]),
)

# Prompts whose labels were learnt from: they never judge.
trained = Table(
    "trained",
    metadata,
    Column("run", Text, nullable=False),
    Column("prompt", Text, nullable=False),
    PrimaryKeyConstraint("run", "prompt"),
    ForeignKeyConstraint(["run"], ["runs.name"]),
)
