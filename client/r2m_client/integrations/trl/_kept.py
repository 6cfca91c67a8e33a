"""Which alias keeps the head of which checkpoint: noted beside the checkpoints, run by run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast


class KeptCheckpoints:
    """The notes of one output folder: they outlive a training, and others' are not in them.

    Args:
        folder: TRL's output_dir.
        run: whose heads.
    """

    def __init__(self, folder: str, run: str) -> None:
        self._folder, self._file = Path(folder), Path(folder) / f"r2m-{run}.json"

    def there(self) -> set[str]:
        """The names of the checkpoints that there are."""
        return {folder.name for folder in self._folder.glob("checkpoint-*")}

    def read(self) -> dict[str, str]:
        """Aliases by checkpoint; none where there are no notes that can be read."""
        try:
            found: Any = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        notes = cast("dict[str, Any]", found)
        return {name: alias for name, alias in notes.items() if isinstance(alias, str)}

    def write(self, kept: Mapping[str, str]) -> None:
        """Replace the notes."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(dict(kept)))
        os.replace(new, self._file)
