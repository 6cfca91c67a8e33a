"""What the checks share: their answers, and what they learn from one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from r2m_service.settings import Settings

if TYPE_CHECKING:
    import torch

    from r2m_service.modeling.backbone import Backbone
    from r2m_service.registry.survey import Survey


class Level(StrEnum):
    """How bad it is: a `problem` stops the server, or its main job; a `warning` does not."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and how to mend it where there is something to mend."""

    check: str
    level: Level
    found: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table of heads: what is wrong with one, and what a repair does about it.

    Attributes:
        head: its number; None where it is about no single head.
        what: a file of it, an alias, a branch.
    """

    run: str
    head: int | None
    what: str
    found: str
    repair: str


@dataclass(slots=True)
class Patient:
    """The server to be: its settings, and what the checks have found out so far.

    Attributes:
        device, dtype: None until found good.
        config: the model's, once it is of a kind that is served.
        parameters: of the model; None where that cannot be told without loading it.
        fits: whether the model fits into memory, as far as that can be told.
        backbone: the loaded model.
        state_usable: whether the state folder is there or can be made.
        survey: of a database that exists.
        blobs_usable: whether the heads' files can be written.
        missing: the settings whose packages are missing.
        deep: whether every file is read; size and presence are looked at anyway.
        repair: whether to mend what is wrong with heads, and not only to say so.
        heads: the table of heads.
    """

    settings: Settings
    load_model: bool = True
    say: Callable[[str], None] = lambda _: None
    device: torch.device | None = None
    dtype: str | None = None
    config: Any = None
    parameters: int | None = None
    fits: bool = True
    backbone: Backbone | None = None
    state_usable: bool = True
    survey: Survey | None = None
    blobs_usable: bool = True
    missing: frozenset[str] = frozenset()
    deep: bool = False
    repair: bool = False
    heads: list[Line] = field(default_factory=list[Line])


def ok(check: str, found: str) -> Finding:
    """Nothing to mend."""
    return Finding(check, Level.OK, found)


def warning(check: str, found: str, mend: str) -> Finding:
    """The server starts, but somebody should know."""
    return Finding(check, Level.WARNING, found, mend)


def problem(check: str, found: str, mend: str) -> Finding:
    """The server does not start, or cannot do its main job."""
    return Finding(check, Level.PROBLEM, found, mend)


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
