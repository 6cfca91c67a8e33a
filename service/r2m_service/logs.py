"""The log: text for people or a JSON object a line, both with what is known of the call at hand.

What clients wrote is never in it, but where an operator asked for it. Names that clients give (of
runs, branches, requests) are, so control characters are escaped: one line stays one line. What an
unexpected error says may quote a text, so only errors of the system say it.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from r2m_service.application.about import content, known

Format = Literal["text", "json"]

CHATTY = ("alembic", "uvicorn", "httpx", "urllib3", "opentelemetry")
"""Whose warnings are enough."""

WITHHELD = "(withheld: --log-content shows it)"
LONGEST = 256
"""Characters of a client's name that a line shows."""


def configure(
    form: Format, level: str, *, show_content: bool, stream: TextIO | None = None
) -> None:
    """Send all logging to stderr.

    Args:
        form: of a line.
        level: the least that is logged.
        show_content: log texts of samples, and what every error says.
        stream: in place of stderr.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter((JsonLines if form == "json" else TextLines)(show_content))
    handler.addFilter(add_known)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    content.setLevel(logging.INFO if show_content else logging.CRITICAL)


def add_known(record: logging.LogRecord) -> bool:
    """Give a record the facts of the call that it was made in."""
    record.facts = {**known(), **getattr(record, "facts", {})}
    return True


class _Lines(logging.Formatter):
    def __init__(self, show_content: bool) -> None:
        super().__init__()
        self._show_content = show_content

    def facts(self, record: logging.LogRecord) -> Mapping[str, Any]:
        """Of the call, each value as a line may hold it."""
        found: Mapping[str, Any] = getattr(record, "facts", {})
        whole = record.name == content.name
        return {key: value if whole else _short(value) for key, value in found.items()}

    def error(self, record: logging.LogRecord) -> dict[str, str]:
        """What went wrong: its type, what it says where that may be shown, and where it was."""
        if record.exc_info is None or record.exc_info[1] is None:
            return {}
        error = record.exc_info[1]
        frames = traceback.extract_tb(error.__traceback__)
        said = str(error) if self._show_content or _of_the_system(error) else WITHHELD
        return {
            "error": f"{type(error).__module__}.{type(error).__qualname__}",
            "error_message": said,
            "stack": "".join(f"{one.filename}:{one.lineno} {one.name}\n" for one in frames),
        }


class JsonLines(_Lines):
    """`{"time", "level", "logger", "message", …facts}`, ASCII, one line each."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.facts(record),
            **self.error(record),
        }
        return json.dumps(line, default=str)


class TextLines(_Lines):
    """`time LEVEL logger message fact=value …`; where an error was, below it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and those of an error."""
        at = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        facts = "".join(f" {key}={_plain(value)}" for key, value in self.facts(record).items())
        line = f"{at} {record.levelname} {record.name} {_plain(record.getMessage())}{facts}"
        error = self.error(record)
        if error:
            stack = error["stack"].replace("\n", "\n    ").rstrip()
            line += f"\n  {error['error']}: {_plain(error['error_message'])}\n    {stack}"
        return line


def _of_the_system(error: BaseException) -> bool:
    """Whether what it says is of files, memory or the device, and of no text."""
    if isinstance(error, OSError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and type(error).__module__.split(".")[0] == "torch"


def _short(value: object) -> object:
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]}…"
    return value


def _plain(value: object) -> str:
    """Without characters that end a line or move a terminal's cursor."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(value)
    )
