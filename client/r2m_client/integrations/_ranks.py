"""The processes of a trainer, as far as feedback needs them: who talks, and small things shared."""

from __future__ import annotations

import importlib
from typing import Any, Protocol


class Ranks(Protocol):
    """Every rank makes the same calls in the same order.

    Attributes:
        main: whether this is rank 0, which talks to the server for all.
    """

    main: bool

    def gather(self, value: Any) -> list[Any] | None:
        """What each rank passes in, on rank 0; None elsewhere."""
        ...

    def broadcast(self, value: Any) -> Any:
        """What rank 0 passes in, on every rank."""
        ...


class Alone:
    """A trainer of one process."""

    main = True

    def gather(self, value: Any) -> list[Any] | None:
        """A list of one."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """The value."""
        return value


class TorchRanks:
    """Those of torch.distributed's default process group."""

    def __init__(self) -> None:
        self._group: Any = importlib.import_module("torch.distributed")
        self.main: bool = self._group.get_rank() == 0

    def gather(self, value: Any) -> list[Any] | None:
        """See `Ranks.gather`."""
        found: list[Any] | None = [None] * self._group.get_world_size() if self.main else None
        self._group.gather_object(value, found, dst=0)
        return found

    def broadcast(self, value: Any) -> Any:
        """See `Ranks.broadcast`."""
        box = [value]
        self._group.broadcast_object_list(box, src=0)
        return box[0]


def ranks_here() -> Ranks:
    """Those of the process group where there is one."""
    group: Any = importlib.import_module("torch.distributed")
    return TorchRanks() if group.is_available() and group.is_initialized() else Alone()
