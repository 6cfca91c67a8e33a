"""Reading a journal back, also one that was cut off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from r2m.errors import Code, Problem
from r2m_service.journal.schema import ALIGNS, SCORES

Kind = Literal["scores", "aligns"]
_SCHEMAS = {"scores": SCORES, "aligns": ALIGNS}


class JournalFolder:
    """The files of a journal.

    Attributes:
        cut: what was left out while reading, a sentence a file: a crash or a full disk cut it.

    Raises:
        Problem: storage_failed, where there is no such folder, or it holds no journal.
    """

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("*.arrows")) if folder.is_dir() else []
        if not self._files:
            raise Problem(Code.STORAGE_FAILED, f"{folder} holds no journal (*.arrows files)")
        self.cut: list[str] = []

    def rows(self, kind: Kind) -> Iterator[dict[str, Any]]:
        """All rows of a kind, in the order in which they were written.

        Raises:
            Problem: storage_failed, for a file of another format.
        """
        for file in self._files:
            if file.name.startswith(f"{kind}-"):
                yield from self._of(file, kind)

    def _of(self, file: Path, kind: Kind) -> Iterator[dict[str, Any]]:
        batches = 0
        with pa.OSFile(str(file)) as source:
            try:
                reader = pa.ipc.open_stream(source)
            except (pa.ArrowInvalid, OSError):
                self.cut.append(f"{file.name} was cut off before its first entry")
                return
            if not reader.schema.equals(_SCHEMAS[kind], check_metadata=True):
                raise Problem(
                    Code.STORAGE_FAILED, f"{file.name} is of another version of the journal"
                )
            while True:
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
                except (pa.ArrowInvalid, OSError):
                    self.cut.append(
                        f"{file.name} was cut off after {batches} entries: what follows is lost"
                    )
                    return
                batches += 1
                yield from batch.to_pylist()
