"""JSON lines from a file or from standard input, with errors that name the line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, cast


def objects(
    lines: Iterable[str], keys: tuple[str, ...], ignored: Counter[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line's object with its number; empty lines are left out.

    Args:
        lines: JSON objects.
        keys: that a line may have.
        ignored: counts the lines with a key of another name; None: such a line is refused.

    Raises:
        ValueError: a line that is no JSON object, or has a key of another name.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry: object = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from None
        if not isinstance(entry, dict):
            raise ValueError(f"line {number} is not a JSON object")
        values = cast("dict[str, Any]", entry)
        others = [key for key in values if key not in keys]
        if ignored is not None:
            ignored.update(others)
        elif others:
            raise ValueError(f"line {number}: {others[0]!r} is not one of {', '.join(keys)}")
        yield number, values
