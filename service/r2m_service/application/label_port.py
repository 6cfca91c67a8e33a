"""What the application needs of a store of anchors, marked samples and labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from r2m_service.domain.audit import AuditState
from r2m_service.domain.labels import KeptSample, Label
from r2m_service.domain.runs import AnchorSet, BlobRef, Change


class LabelStore(Protocol):
    """Plain blocking code, called in a worker thread; every method is one transaction.

    A database that fails raises Problem(storage_failed).
    """

    def put_anchors(
        self, run: str, *, pairs: int, file: BlobRef, at: datetime, change: Change
    ) -> AnchorSet:
        """Make a set the one that judges.

        Raises:
            Problem: unknown_run, run_archived.
        """
        ...

    def keep_samples(
        self, run: str, kept: Sequence[KeptSample], *, most: int, most_bytes: int
    ) -> tuple[set[str], list[str]]:
        """Keep samples until their labels come; the oldest without one make room.

        Args:
            most, most_bytes: of all samples of the run, and of their hidden states.

        Returns:
            Ids that are kept now (one that is taken by other content is not), and keys of files
            that nothing needs any more.

        Raises:
            Problem: unknown_run, run_archived.
        """
        ...

    def kept_samples(self, run: str, ids: Collection[str]) -> dict[str, KeptSample]:
        """Those of the named samples that are kept."""
        ...

    def list_samples(
        self, run: str, *, after: int, limit: int, waiting: bool
    ) -> list[tuple[int, KeptSample, list[Label]]]:
        """Kept samples by number, with their labels; `waiting`: those without one alone."""
        ...

    def waiting_samples(self, run: str) -> int:
        """How many kept samples have no label."""
        ...

    def add_labels(
        self, run: str, given: Sequence[Label], *, freeze_on_alarm: str | None
    ) -> tuple[list[Label | None], AuditState]:
        """Keep labels; grades of samples that judge move the audited gap, each once.

        Args:
            given: of samples that are kept.
            freeze_on_alarm: the reason to freeze the run with, where an alarm shall do that.

        Returns:
            For each label, the one that was there before (None: it is new), and the gap's state.

        Raises:
            Problem: unknown_run, run_archived.
        """
        ...

    def training_labels(self, run: str, *, groups: int) -> tuple[list[KeptSample], list[Label]]:
        """Samples and labels of the newest labelled groups that train; labels oldest first."""
        ...

    def trained_among(self, run: str, prompts: Collection[str]) -> set[str]:
        """Those prompts whose labels were learnt from."""
        ...
