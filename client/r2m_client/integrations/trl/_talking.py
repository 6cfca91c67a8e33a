"""One process of a trainer calls the server for all, however many ranks there are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as distributed

from r2m_client._errors import R2MError
from r2m_client.split import Answers, States, torch_ranks

logger = logging.getLogger("r2m_client.integrations.trl")

T = TypeVar("T")


class TrainingStopped(R2MError):  # noqa: N818 - it says what happened, as _errors.py has it
    """There are no rewards to train on: the server is gone, or refuses what training needs."""


class Ranks:
    """The processes of a trainer; rank 0 talks to the server, and what it hears goes to all."""

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return (
            distributed.is_available()
            and distributed.is_initialized()
            and distributed.get_world_size() > 1
        )

    @property
    def rank(self) -> int:
        """This one's number."""
        return distributed.get_rank() if self.several else 0

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What each rank makes, by rank; on all of them.

        Raises:
            TrainingStopped: on all ranks, if one could not make it.
            Exception: with one rank, its own.
        """
        if not self.several:
            return [make()]
        found: list[Any] = [None] * distributed.get_world_size()
        try:
            mine: tuple[Any, Exception | None] = (make(), None)
        except Exception as error:
            mine = (None, error)
        told = None if mine[1] is None else _words(mine[1])
        distributed.all_gather_object(found, (mine[0], told))
        for rank, (_, problem) in enumerate(found):
            if problem is not None:
                raise TrainingStopped(f"rank {rank}: {problem}") from mine[1]
        return [value for value, _ in found]

    def ask(self, states: States, question: Callable[[Answers], T]) -> T:
        """Rank 0 asks the server, all answer for their states, and all hear what came of it.

        Raises:
            TrainingStopped: on all ranks, if it came to nothing.
        """
        if not self.several:
            try:
                return question(states)
            except R2MError as error:
                raise _stopped(error) from error
        shared = torch_ranks(states)
        cause: Exception | None = None
        outcome: tuple[Any, str | None] = (None, None)
        if self.rank == 0:
            with shared:
                try:
                    outcome = (question(shared), None)
                except Exception as error:
                    cause, outcome = error, (None, str(_stopped(error)))
        else:
            shared.follow()
        box: list[Any] = [outcome]
        distributed.broadcast_object_list(box, src=0)
        answer, problem = box[0]
        if problem is not None:
            raise TrainingStopped(problem) from cause
        return answer


def _stopped(error: Exception) -> TrainingStopped:
    if isinstance(error, TrainingStopped):
        return error
    return TrainingStopped(f"no rewards, so training stops: {_words(error)}")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
