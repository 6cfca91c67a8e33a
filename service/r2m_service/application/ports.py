"""What the application needs of storage: the registry and the blobs (`engine_port`: the device).

The registry and the blob store are plain blocking code; use cases call them in a worker thread.
"""

from __future__ import annotations

from typing import Protocol

from r2m_service.domain.method import MethodSettings
from r2m_service.domain.runs import (
    AnsweredStep,
    BlobRef,
    Branch,
    Change,
    DiskUse,
    Head,
    Run,
    RunState,
    StepCommit,
)


class Registry(Protocol):
    """Metadata of runs, branches, heads, aliases, answered steps and changes.

    Every method is one transaction; those that take a `change` keep it in the audit trail. A
    database that fails raises Problem(storage_failed).
    """

    def create_run(self, run: Run, first: Head, change: Change) -> None:
        """Store a run with branch `main` at step 0, head 0, and the aliases live and reference.

        Raises:
            Problem: run_exists, where the name is taken.
        """
        ...

    def run_state(self, name: str) -> RunState | None:
        """The run with its branches and aliases, read in one transaction; None if unknown."""
        ...

    def run_states(self) -> list[RunState]:
        """All runs, oldest first."""
        ...

    def set_frozen(self, name: str, reason: str | None, change: Change) -> None:
        """Freeze a run, or lift it: then the count of rejections and the alarm start anew.

        Raises:
            Problem: unknown_run, run_archived.
        """
        ...

    def archive_run(self, name: str, change: Change) -> None:
        """Mark a run read-only.

        Raises:
            Problem: unknown_run, run_archived.
        """
        ...

    def update_method(self, name: str, method: MethodSettings, change: Change) -> None:
        """Replace a run's settings.

        Raises:
            Problem: unknown_run, run_archived.
        """
        ...

    def changes(self, run: str) -> list[Change]:
        """A run's audit trail, oldest first."""
        ...

    def head(self, run: str, number: int) -> Head | None:
        """One version, or None."""
        ...

    def heads(self, run: str) -> list[Head]:
        """All versions of a run, by number."""
        ...

    def disk_use(self, run: str | None = None) -> dict[str, DiskUse]:
        """What the kept heads take, by run: of all runs, or of the one that is named."""
        ...

    def next_head_number(self, run: str) -> int:
        """One more than the greatest number given; numbers only grow."""
        ...

    def set_alias(
        self, run: str, alias: str, head: int, expect: int | None, change: Change
    ) -> int | None:
        """Point an alias at a head; returns where it pointed before (None: it is new).

        Raises:
            Problem: alias_moved, where `expect` is given and the alias points elsewhere or
                nowhere; head_pruned.
        """
        ...

    def answered_step(self, run: str, branch: str, step: int) -> AnsweredStep | None:
        """The stored answer of a step, or None."""
        ...

    def head_after_step(self, run: str, branch: str, step: int) -> int | None:
        """The head that was live after a step of a branch was answered, or None."""
        ...

    def commit_step(self, commit: StepCommit) -> None:
        """Append the candidate, the answer, and advance the branch: one compare-and-swap.

        The branch must stand at (step - 1, parent) and the candidate's number must be free. On the
        run's current branch the aliases live, previous and candidate follow: `previous` changes
        only when live does; `candidate` only when the step made one.

        Raises:
            Problem: align_conflict, where another commit came first; nothing is changed then.
        """
        ...

    def open_branch(self, run: str, branch: Branch, change: Change) -> None:
        """Add a branch, make it the run's current one, and move `live` and `previous`.

        Raises:
            Problem: align_conflict, where a branch of that name exists; head_pruned, where the
                head's files or its optimizer state are gone.
        """
        ...


class Blobs(Protocol):
    """Immutable files, addressed by references that carry their hash."""

    def put(self, key: str, data: bytes) -> BlobRef:
        """Write a file so that it is whole and on disk, or not there at all.

        Args:
            key: relative, '/'-separated, made by the server from safe characters.

        Raises:
            Problem: storage_failed.
        """
        ...

    def get(self, ref: BlobRef) -> bytes:
        """Read a file and compare it with its hash.

        Raises:
            Problem: head_damaged (missing, cut off, altered) or storage_failed.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove a file; one that is not there is fine."""
        ...
