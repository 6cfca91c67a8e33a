"""All that a fake holds, and the time on its answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from r2m.errors import Code, Problem

if TYPE_CHECKING:
    from r2m_client.testing._align_groups import Sorted
    from r2m_client.testing._backbone import Backbone
    from r2m_client.testing._state import Run


@dataclass(slots=True)
class World:
    """The test's functions, the runs, and what became of the groups of the call at hand."""

    backbone: Backbone
    runs: dict[str, Run] = field(default_factory=dict[str, "Run"])
    told: Sorted | None = None
    since: str = field(default_factory=lambda: now())

    def run(self, name: str) -> Run:
        """A run. Raises Problem(unknown_run)."""
        found = self.runs.get(name)
        if found is None:
            raise Problem(Code.UNKNOWN_RUN, f"there is no run {name[:100]!r}", field="run")
        return found

    def advice_on(self, run: str) -> str:
        """What the test wants the audited gap to say."""
        return self.backbone.advice_on(run)

    def open_run(self, name: str) -> Run:
        """A run that may be changed. Raises Problem(unknown_run, run_archived, ...)."""
        found = self.run(name)
        found.require_open(self.backbone.fingerprint)
        return found


def now() -> str:
    """RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
