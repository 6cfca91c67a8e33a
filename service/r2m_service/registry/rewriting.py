"""For migrations: the settings of all runs, changed in place."""

from __future__ import annotations

import json
from typing import Any, Protocol

import sqlalchemy as sa
from alembic import op


class Change(Protocol):
    """Gives a method's new settings; `created`: those that the run was created with."""

    def __call__(self, method: dict[str, Any], *, created: bool) -> dict[str, Any]:
        """Called for each of a run's two settings."""
        ...


def rewrite_settings(change: Change) -> None:
    """Change the settings of every run, and those it was created with."""
    connection = op.get_bind()
    runs = sa.table("runs", sa.column("name"), sa.column("method"))
    for name, method in connection.execute(sa.select(runs.c.name, runs.c.method)).all():
        changed = json.dumps(change(json.loads(method), created=False), separators=(",", ":"))
        connection.execute(sa.update(runs).where(runs.c.name == name).values(method=changed))
    changes = sa.table(
        "changes", sa.column("run"), sa.column("number"), sa.column("what"), sa.column("detail")
    )
    created = sa.select(changes.c.run, changes.c.number, changes.c.detail).where(
        changes.c.what == "created"
    )
    for run, number, detail in connection.execute(created).all():
        settings = json.loads(detail)
        if "method" in settings:
            settings["method"] = change(settings["method"], created=True)
            connection.execute(
                sa.update(changes)
                .where(changes.c.run == run, changes.c.number == number)
                .values(detail=json.dumps(settings, separators=(",", ":")))
            )
