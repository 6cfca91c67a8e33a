"""The log: text for people or a JSON object a line, both with what is known of the call at hand.

What clients wrote is never in it, but where an operator asked for it. Names that clients give (of
runs, branches, requests) are, so control characters are escaped: one line stays one line. What an
unexpected error says may quote a text, so only errors of the system say it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, TextIO

from r2m_service.application.about import content, known

Format = Literal["text", "json"]

OURS = ("r2m", "r2m_service")
"""Whose lines the level is about. Of others there are warnings alone: what they say at debug is
beyond us, and drivers of stores say tokens there."""

WITHHELD = "(withheld: --log-content shows it)"
LONGEST = 256
"""Characters of a client's name that a line shows."""
LONGEST_MESSAGE = 2000

_REPR = re.compile(r"(Exception in callback|Executing)\b.*", re.DOTALL)
"""What asyncio says with the arguments of a callback, or the result of a task."""


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
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter((JsonLines if form == "json" else TextLines)(show_content))
    handler.addFilter(add_known)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    wanted = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(logging.WARNING, wanted))
    for name in OURS:
        logging.getLogger(name).setLevel(wanted)
    content.setLevel(logging.INFO if show_content else logging.CRITICAL)


def take_over() -> None:
    """Whatever else would write to stderr is a line of this log too. May be called again.

    Libraries with handlers of their own (torch, transformers) lose them; warnings, and errors that
    nobody caught, are logged: Python would print what they say, which may quote a text.
    """
    for one in list(logging.root.manager.loggerDict.values()):
        if isinstance(one, logging.Logger) and one.handlers:
            one.handlers.clear()
            one.propagate = True
    logging.captureWarnings(True)
    log = logging.getLogger("r2m")

    def uncaught(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, at)
        else:
            log.critical("the server ends by a bug", exc_info=(kind, error, at))

    def of_a_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            name = args.thread.name if args.thread else "a thread"
            info = (args.exc_type, args.exc_value, args.exc_traceback)
            log.error("the thread %s ended by a bug", name, exc_info=info)

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        if args.exc_value is not None:
            info = (args.exc_type, args.exc_value, args.exc_traceback)
            log.error("an error that nobody could be told of", exc_info=info)

    sys.excepthook, threading.excepthook, sys.unraisablehook = uncaught, of_a_thread, unraisable


def add_known(record: logging.LogRecord) -> bool:
    """Give a record the facts of the call that it was made in."""
    record.facts = {**known(), **getattr(record, "facts", {})}
    return True


class _Handler(logging.StreamHandler[TextIO]):
    """Where a line cannot be made it says so; the base class prints what was to be in it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's
        """In place of the line."""
        record.msg, record.args = f"a line of {record.filename}:{record.lineno} was lost", None
        record.exc_info, record.facts = sys.exc_info(), {}
        with contextlib.suppress(Exception):  # there is nobody left to tell
            self.stream.write(self.format(record) + self.terminator)


class _Lines(logging.Formatter):
    def __init__(self, show_content: bool) -> None:
        super().__init__()
        self._show_content = show_content

    def facts(self, record: logging.LogRecord) -> Mapping[str, Any]:
        """Of the call, each value as a line may hold it."""
        found: Mapping[str, Any] = getattr(record, "facts", {})
        whole = record.name == content.name
        return {key: value if whole else _short(value) for key, value in found.items()}

    def said(self, record: logging.LogRecord) -> str:
        """The message. asyncio's quote what tasks came to, errors' words included: cut before."""
        text = record.getMessage()
        if record.name == "asyncio" and not self._show_content:
            text = _REPR.sub(r"\1", text).partition("\n")[0]
        return _short(text, LONGEST_MESSAGE)

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
            "message": self.said(record),
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
        line = f"{at} {record.levelname} {record.name} {_plain(self.said(record))}{facts}"
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


def _short(value: Any, longest: int = LONGEST) -> Any:
    if isinstance(value, str) and len(value) > longest:
        return f"{value[:longest]}…"
    return value


def _plain(value: object) -> str:
    """Without characters that end a line or move a terminal's cursor."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(value)
    )
