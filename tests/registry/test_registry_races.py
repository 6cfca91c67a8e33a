"""Many threads at once: of those that want the same thing, exactly one gets it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from registry_makers import make_commit, make_head, make_run

from r2m.errors import Code, Problem
from r2m_service.domain.runs import Branch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from registry_makers import SqlRegistry

ROUNDS = 25


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def race(pool: ThreadPoolExecutor, *attempts: Callable[[], object]) -> list[Code | None]:
    """Start all at the same moment; what each was refused with, None where it was not."""
    barrier = threading.Barrier(len(attempts))

    def run(attempt: Callable[[], object]) -> Code | None:
        barrier.wait()
        try:
            attempt()
        except Problem as problem:
            return problem.code
        return None

    return list(pool.map(run, attempts))


@pytest.mark.parametrize("numbers", [(0, 0), (0, 1), (None, None)], ids=["same", "other", "none"])
def test_one_of_two_aligns_commits(
    registry: SqlRegistry, pool: ThreadPoolExecutor, numbers: tuple[int | None, int | None]
) -> None:
    live = 0
    for step in range(1, ROUNDS + 1):
        first = registry.next_head_number("tldr")
        commits = [
            make_commit(step, live, None if n is None else first + n, answer=answer)
            for n, answer in zip(numbers, ("left", "right"), strict=True)
        ]
        refused = race(
            pool,
            lambda: registry.commit_step(commits[0]),  # noqa: B023
            lambda: registry.commit_step(commits[1]),  # noqa: B023
        )
        assert refused.count(None) == 1
        assert refused.count(Code.ALIGN_CONFLICT) == 1
        winner = commits[refused.index(None)]
        answered = registry.answered_step("tldr", "main", step)
        assert answered is not None
        assert answered.answer == winner.answer
        state = registry.run_state("tldr")
        assert state is not None
        live = winner.live
        assert state.branch(None) == Branch(name="main", live=live, step=step)
        assert state.aliases["live"] == live
    made = 0 if numbers[0] is None else ROUNDS
    assert len(registry.heads("tldr")) == 1 + made


def test_one_of_many_moves_the_alias(registry: SqlRegistry, pool: ThreadPoolExecutor) -> None:
    for step in range(1, 9):
        registry.commit_step(make_commit(step, step - 1, step))
    registry.set_alias("tldr", "mine", 0, None)
    at = 0
    for _ in range(ROUNDS):
        targets = [head for head in range(9) if head != at][:8]
        before: list[int | None] = []

        def move(head: int) -> None:
            before.append(registry.set_alias("tldr", "mine", head, at))  # noqa: B023

        refused = race(pool, *(lambda head=head: move(head) for head in targets))
        assert refused.count(None) == 1
        assert refused.count(Code.ALIAS_MOVED) == 7
        assert before == [at]
        state = registry.run_state("tldr")
        assert state is not None
        at = targets[refused.index(None)]
        assert state.aliases["mine"] == at


def test_a_new_alias_is_new_to_one(registry: SqlRegistry, pool: ThreadPoolExecutor) -> None:
    for turn in range(ROUNDS):
        before: list[int | None] = []

        def name_it() -> None:
            before.append(registry.set_alias("tldr", f"a{turn}", 0, None))  # noqa: B023

        assert race(pool, *[name_it] * 4) == [None] * 4
        assert sorted(before, key=str) == [0, 0, 0, None]


def test_one_of_many_creates_the_run(empty: SqlRegistry, pool: ThreadPoolExecutor) -> None:
    for turn in range(ROUNDS):
        attempts = [
            lambda key=key: empty.create_run(make_run(f"r{turn}", key=f"{turn}-{key}"), make_head())  # noqa: B023
            for key in range(4)
        ]
        refused = race(pool, *attempts)
        assert refused.count(None) == 1
        assert refused.count(Code.RUN_EXISTS) == 3
    assert len(empty.run_states()) == ROUNDS


def test_live_is_the_current_branchs_whoever_comes_first(
    registry: SqlRegistry, pool: ThreadPoolExecutor
) -> None:
    """An align on the old branch and a rollback at the same moment."""
    branch = "main"
    for turn in range(ROUNDS):
        before = registry.run_state("tldr")
        assert before is not None
        at = before.branch(branch)
        commit = make_commit(at.step + 1, at.live, registry.next_head_number("tldr"), branch=branch)
        opened = Branch(name=f"b{turn}", live=0, step=0)
        refused = race(
            pool,
            lambda: registry.commit_step(commit),  # noqa: B023
            lambda: registry.open_branch("tldr", opened),  # noqa: B023
        )
        assert refused == [None, None]
        after = registry.run_state("tldr")
        assert after is not None
        assert after.current == opened.name
        assert after.aliases["live"] == 0
        branch = opened.name


def test_readers_never_see_half_a_commit(registry: SqlRegistry, pool: ThreadPoolExecutor) -> None:
    done = threading.Event()

    def read() -> int:
        seen = 0
        while not done.is_set():
            state = registry.run_state("tldr")
            assert state is not None
            branch = state.branch(None)
            # Every step of this run makes a head of its number, and it becomes live.
            assert branch.live == branch.step == state.aliases["live"]
            assert state.aliases.get("previous", -1) == branch.live - 1
            seen += 1
        return seen

    readers = [pool.submit(read) for _ in range(3)]
    try:
        for step in range(1, 2 * ROUNDS):
            registry.commit_step(make_commit(step, step - 1, step))
    finally:
        done.set()
    assert all(reader.result() > 0 for reader in readers)
