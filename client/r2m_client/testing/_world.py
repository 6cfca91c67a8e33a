"""All that a fake holds, and the time on its answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from r2m.errors import Code, Problem

if TYPE_CHECKING:
    from r2m_client.testing._backbone import Backbone
    from r2m_client.testing._state import Run


@dataclass(slots=True)
class World:
    """The test's functions, the runs, and how many groups the call at hand went through."""

    backbone: Backbone
    runs: dict[str, Run] = field(default_factory=dict[str, "Run"])
    measured: int = 0
    since: str = field(default_factory=lambda: now())

    def run(self, name: str) -> Run:
        """A run. Raises Problem(unknown_run)."""
        found = self.runs.get(name)
        if found is None:
            raise Problem(Code.UNKNOWN_RUN, f"there is no run {name[:100]!r}", field="run")
        return found

    def open_run(self, name: str) -> Run:
        """A run that may be changed. Raises Problem(unknown_run, run_archived, ...)."""
        found = self.run(name)
        found.require_open(self.backbone.fingerprint)
        return found


def now() -> str:
    """RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
