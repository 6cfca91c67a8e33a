"""Anchors, marked samples and their labels in the registry."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, exists, func, insert, select

from r2m_service.domain.runs import AnchorSet, Change
from r2m_service.registry.label_rows import label_of, label_row, sample_of, sample_row
from r2m_service.registry.statements import audit_of, lock_open_run, record, set_frozen, store_audit
from r2m_service.registry.tables import anchor_sets, labels, samples, trained
from r2m_service.registry.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Connection

    from r2m_service.domain.audit import AuditState
    from r2m_service.domain.labels import KeptSample, Label
    from r2m_service.domain.runs import BlobRef

_MANY = 500
"""Names in one statement: databases bound how many values it may carry."""


class SqlLabels(Transactions):
    """The application's `LabelStore`. Every method is one transaction."""

    def put_anchors(
        self, run: str, *, pairs: int, file: BlobRef, at: datetime, change: Change
    ) -> AnchorSet:
        """Make a set the one that judges.

        Raises:
            Problem: unknown_run, run_archived.
        """
        with self._writing() as connection:
            lock_open_run(connection, run)
            last = connection.execute(
                select(func.max(anchor_sets.c.number)).where(anchor_sets.c.run == run)
            ).scalar_one()
            made = AnchorSet((last or 0) + 1, pairs, 0, file)
            row = {"file_key": file.key, "file_sha256": file.sha256, "file_size": file.size}
            connection.execute(
                insert(anchor_sets).values(
                    run=run, number=made.number, pairs=pairs, looks=0, created_at=at, **row
                )
            )
            record(connection, run, change)
        return made

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
        with self._writing() as connection:
            lock_open_run(connection, run)
            known = _contents(connection, run, [one.id for one in kept])
            number = _next(connection, samples, run)
            done: set[str] = set()
            unneeded: list[str] = []
            for sample in kept:
                if sample.id in known:
                    # The same again: the first stays, with the reward that was answered first.
                    if known[sample.id] == sample.content:
                        done.add(sample.id)
                    if sample.file is not None:
                        unneeded.append(sample.file.key)
                    continue
                connection.execute(insert(samples).values(sample_row(run, number, sample)))
                known[sample.id] = sample.content
                done.add(sample.id)
                number += 1
            unneeded += _make_room(connection, run, most, most_bytes)
        return done, unneeded

    def kept_samples(self, run: str, ids: Collection[str]) -> dict[str, KeptSample]:
        """Those of the named samples that are kept."""
        found: dict[str, KeptSample] = {}
        names = sorted(ids)
        with self._reading() as connection:
            for start in range(0, len(names), _MANY):
                part = names[start : start + _MANY]
                query = select(samples).where(samples.c.run == run, samples.c.id.in_(part))
                for row in connection.execute(query).mappings():
                    found[row["id"]] = sample_of(row)
        return found

    def list_samples(
        self, run: str, *, after: int, limit: int, waiting: bool
    ) -> list[tuple[int, KeptSample, list[Label]]]:
        """Kept samples by number, with their labels."""
        query = (
            select(samples)
            .where(samples.c.run == run, samples.c.number > after)
            .order_by(samples.c.number)
            .limit(limit)
        )
        if waiting:
            query = query.where(~_labelled())
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
            said = _labels_about(connection, run, [row["id"] for row in rows])
        return [(row["number"], sample_of(row), said.get(row["id"], [])) for row in rows]

    def waiting_samples(self, run: str) -> int:
        """How many kept samples have no label."""
        query = select(func.count()).select_from(samples)
        with self._reading() as connection:
            return connection.execute(query.where(samples.c.run == run, ~_labelled())).scalar_one()

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
        with self._writing() as connection:
            lock_open_run(connection, run)
            audit = audit_of(connection, run)
            before = audit.advice
            number = _next(connection, labels, run)
            found: list[Label | None] = []
            for label in given:
                at = (
                    labels.c.run == run,
                    labels.c.sample == label.sample,
                    labels.c.loser == (label.loser or ""),
                )
                row = connection.execute(select(labels).where(*at)).mappings().one_or_none()
                found.append(None if row is None else label_of(row))
                if row is not None:
                    continue
                connection.execute(insert(labels).values(label_row(run, number, label)))
                number += 1
                if label.grade is not None:
                    reward = _judged_reward(connection, run, label.sample)
                    audit = audit if reward is None else audit.add(reward, label.grade)
            store_audit(connection, run, audit)
            if freeze_on_alarm is not None and audit.advice == "stop" != before:
                set_frozen(connection, run, freeze_on_alarm)
                now = datetime.now(UTC)
                record(connection, run, Change(now, "frozen", {}, freeze_on_alarm))
        return found, audit

    def training_labels(self, run: str, *, groups: int) -> tuple[list[KeptSample], list[Label]]:
        """Samples and labels of the newest labelled groups that train; labels oldest first."""
        newest = (
            select(samples.c.group, func.max(labels.c.number).label("last"))
            .join(labels, (labels.c.run == samples.c.run) & (labels.c.sample == samples.c.id))
            .where(samples.c.run == run, samples.c.use == "train")
            .group_by(samples.c.group)
            .order_by(func.max(labels.c.number).desc())
            .limit(groups)
        )
        with self._reading() as connection:
            names = [row.group for row in connection.execute(newest)]
            query = select(samples).where(
                samples.c.run == run, samples.c.use == "train", samples.c.group.in_(names)
            )
            kept = [sample_of(row) for row in connection.execute(query).mappings()]
            # By number, and not by time: a clock may be set back.
            query = (
                select(labels)
                .join(samples, (samples.c.run == labels.c.run) & (samples.c.id == labels.c.sample))
                .where(labels.c.run == run, samples.c.use == "train", samples.c.group.in_(names))
                .order_by(labels.c.number)
            )
            said = [label_of(row) for row in connection.execute(query).mappings()]
        return kept, said

    def trained_among(self, run: str, prompts: Collection[str]) -> set[str]:
        """Those prompts whose labels were learnt from."""
        query = select(trained.c.prompt).where(trained.c.run == run)
        with self._reading() as connection:
            return {row.prompt for row in connection.execute(query)} & set(prompts)


def _next(connection: Connection, table: Any, run: str) -> int:
    query = select(func.max(table.c.number)).where(table.c.run == run)
    last = connection.execute(query).scalar_one()
    return 1 if last is None else last + 1


def _labelled() -> Any:
    """Whether somebody said something of a row of `samples`."""
    said = (labels.c.sample == samples.c.id) | (labels.c.loser == samples.c.id)
    return exists().where(labels.c.run == samples.c.run, said)


def _labels_about(connection: Connection, run: str, ids: list[str]) -> dict[str, list[Label]]:
    found: dict[str, list[Label]] = {}
    for start in range(0, len(ids), _MANY):
        part = ids[start : start + _MANY]
        query = (
            select(labels)
            .where(labels.c.run == run, labels.c.sample.in_(part))
            .order_by(labels.c.number)
        )
        for row in connection.execute(query).mappings():
            found.setdefault(row["sample"], []).append(label_of(row))
    return found


def _contents(connection: Connection, run: str, ids: list[str]) -> dict[str, str]:
    """Of those ids that are taken, what by."""
    found: dict[str, str] = {}
    for start in range(0, len(ids), _MANY):
        part = ids[start : start + _MANY]
        query = select(samples.c.id, samples.c.content).where(
            samples.c.run == run, samples.c.id.in_(part)
        )
        found |= {row.id: row.content for row in connection.execute(query)}
    return found


def _judged_reward(connection: Connection, run: str, sample: str) -> float | None:
    """The reward that a grade is held against; None for a sample that trains, or has trained."""
    learnt = exists().where(trained.c.run == run, trained.c.prompt == samples.c.prompt)
    query = select(samples.c.reward).where(
        samples.c.run == run, samples.c.id == sample, samples.c.use == "judge", ~learnt
    )
    return connection.execute(query).scalar_one_or_none()


def _make_room(connection: Connection, run: str, most: int, most_bytes: int) -> list[str]:
    """Drop the oldest samples beyond the bounds, those without a label first."""
    size = func.coalesce(samples.c.file_size, 0)
    count, total = connection.execute(
        select(func.count(), func.coalesce(func.sum(size), 0)).where(samples.c.run == run)
    ).one()
    keys: list[str] = []
    while count > most or total > most_bytes:
        row = connection.execute(
            select(samples.c.number, samples.c.file_key, size.label("size"))
            .where(samples.c.run == run)
            .order_by(_labelled(), samples.c.number)
            .limit(1)
        ).one()
        connection.execute(
            delete(samples).where(samples.c.run == run, samples.c.number == row.number)
        )
        count, total = count - 1, total - row.size
        if row.file_key is not None:
            keys.append(row.file_key)
    return keys
