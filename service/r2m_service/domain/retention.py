"""Which heads' files may go: the retention rule, as a pure function.

A head is immutable and its row stays for good; its weights, and sooner its optimizer state, are
let go when nobody can need them any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from r2m_service.domain.runs import Branch

FIRST = 0
"""Version 0 is kept for good: it is what drift and rank evidence are compared with."""


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept beside live, aliased and first heads.

    Attributes:
        heads: the last so many, by number.
        every: numbers divisible by it; 0: none.
        staleness: the heads that score the last so many steps of every branch.
        optimizers: optimizer states of the last so many heads that have one.
    """

    heads: int = 20
    every: int = 50
    staleness: int = 8
    optimizers: int = 3


@dataclass(frozen=True, slots=True)
class Stored:
    """A head whose weights are kept, and whether its optimizer state is too."""

    number: int
    optimizer: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Steps of one branch, both ends among them."""

    branch: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Recent:
    """Where the heads of the last steps are found.

    Attributes:
        spans: the head that was live after each of these steps; a step without a row has none.
        heads: those that branches started from.
    """

    spans: tuple[Span, ...]
    heads: frozenset[int]


@dataclass(frozen=True, slots=True)
class Prunable:
    """What may go: whole heads, and optimizer states of heads that stay."""

    heads: frozenset[int]
    optimizers: frozenset[int]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was let go: heads, optimizer states of others, and the keys of their files."""

    heads: tuple[int, ...]
    optimizers: tuple[int, ...]
    keys: tuple[str, ...]


def recent_steps(branches: Mapping[str, Branch], staleness: int) -> Recent:
    """Where the heads are that score the last `staleness` steps of every branch, and the next one.

    Step s is scored by the head that was live after step s - 1. A branch that is younger than
    that goes on in the one it came from.
    """
    spans: list[Span] = []
    heads: set[int] = set()
    for branch in branches.values():
        lowest, last = max(branch.step - staleness, 0), branch.step
        on: Branch | None = branch
        while on is not None:
            origin = on.origin_step if on.origin_branch is not None else None
            spans.append(Span(on.name, max(lowest, 0 if origin is None else origin + 1), last))
            if origin is None or lowest > origin:
                break
            if origin <= last and on.origin_head is not None:
                heads.add(on.origin_head)
            # Below where it began, and no further up than was asked for.
            last = min(last, origin - 1)
            on = branches.get(on.origin_branch or "") if lowest <= last else None
    return Recent(tuple(span for span in spans if span.first <= span.last), frozenset(heads))


def prunable(
    stored: Iterable[Stored],
    *,
    branches: Mapping[str, Branch],
    current: str,
    aliases: Mapping[str, int],
    recent: Collection[int],
    keep: Keep,
) -> Prunable:
    """What may go of a run's kept heads.

    Args:
        recent: live-after heads of the last steps (`recent_steps`).
    """
    heads = sorted(stored, key=lambda head: head.number, reverse=True)
    kept = {FIRST, *recent, *aliases.values(), *(one.live for one in branches.values())}
    kept |= {head.number for head in heads[: keep.heads]}
    if keep.every:
        kept |= {head.number for head in heads if head.number % keep.every == 0}
    with_optimizer = [head.number for head in heads if head.optimizer and head.number in kept]
    # Align goes on from the current branch's live head; an aliased one can be gone back to. A
    # branch that was left needs none: what rollback came from is `previous`.
    states = {*aliases.values(), branches[current].live, *with_optimizer[: keep.optimizers]}
    return Prunable(
        heads=frozenset(head.number for head in heads) - kept,
        optimizers=frozenset(with_optimizer) - states,
    )
