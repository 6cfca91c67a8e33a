"""Clearing what a crash left: files that no row needs, and temporary ones.

A crash between writing a file (a head's, a marked sample's, an anchor set's) and committing its
row, or between committing that it was let go and removing it, leaves what nobody will ask for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r2m_service.registry.blobs import BlobStore
    from r2m_service.registry.reading import SqlReader

GRACE = timedelta(hours=1)
"""A younger file may be another replica's, which is about to commit the row that needs it."""

# What this service writes, and nothing else: a store may hold other people's files too.
_RUN = r"(?P<run>[0-9a-f]{32})"
_STEM = r"[0-9a-f]{32}"
# By folder below the run's: heads, what waits for outside labels, anchor sets.
_KINDS = {"": r"(?:\.optimizer)?\.safetensors", "samples/": r"\.bin", "anchors/": r"\.json"}
_FILES = "|".join(
    rf"{folder}(?:{_STEM}{end}|\.{_STEM}{end}\.[0-9a-f]{{16}}\.part)"
    for folder, end in _KINDS.items()
)
_TRIAL = r"doctor-[0-9a-f]{16}"
_OURS = re.compile(
    rf"{_RUN}/(?:{_FILES})"
    rf"|{_TRIAL}|\.{_TRIAL}\.[0-9a-f]{{16}}\.part"
)


@dataclass(frozen=True, slots=True)
class Orphans:
    """Files that nothing needs: their bytes by name.

    Attributes:
        mine: that may be removed.
        unknown: of runs that this database does not know; another one may.
    """

    mine: dict[str, int]
    unknown: dict[str, int]


def find_orphans(
    sizes: dict[str, int], named: frozenset[str], runs: frozenset[str], *, alone: bool
) -> Orphans:
    """Which of a store's files nothing needs.

    Args:
        sizes: what lies in the store, listed before `named` was read: a file that was written and
            committed in between is named then.
        named: keys that a row needs.
        runs: keys of all runs.
        alone: whether no other database keeps files there.
    """
    mine: dict[str, int] = {}
    unknown: dict[str, int] = {}
    for name, size in sizes.items():
        match = _OURS.fullmatch(name)
        if match is None or name in named:
            continue
        run = match["run"]
        known = run is None or run in runs or alone
        (mine if known else unknown)[name] = size
    return Orphans(mine, unknown)


def old_enough(blobs: BlobStore, name: str, *, alone: bool, now: datetime | None = None) -> bool:
    """Whether nobody can still be at work on a file.

    Args:
        alone: whether no other server writes to the store.
    """
    if alone and "/" in name:  # what lies outside is the doctor's, who asks nobody
        return True
    written = blobs.modified(name)
    return written is not None and (now or datetime.now(UTC)) - written >= GRACE


def sweep(registry: SqlReader, blobs: BlobStore, *, alone: bool) -> dict[str, int]:
    """Remove what a crash left.

    Args:
        alone: whether this process alone writes to database and store.

    Returns:
        The bytes of each file that was removed, by name.

    Raises:
        Problem: storage_failed.
    """
    sizes = blobs.sizes()
    named, runs = registry.stored_keys()
    found = find_orphans(sizes, named, runs, alone=alone).mine
    going = {name: size for name, size in found.items() if old_enough(blobs, name, alone=alone)}
    for name in going:
        blobs.remove_found(name)
    return going
