"""Letting go of heads: what the rows say afterwards, whoever else is at work."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from registry_makers import CHANGE, START, make_commit, make_head, refuses

from r2m.errors import Code, Problem
from r2m_service.domain.repair import Repair
from r2m_service.domain.retention import Keep
from r2m_service.domain.runs import Branch, Change, DiskUse

if TYPE_CHECKING:
    from registry_makers import SqlRegistry

LATER = START + timedelta(days=1)
FEW = Keep(heads=2, every=4, staleness=1, optimizers=1)


def grown(registry: SqlRegistry, steps: int) -> None:
    for step in range(1, steps + 1):
        registry.commit_step(make_commit(step, step - 1, step))


def kept(registry: SqlRegistry) -> list[int]:
    return [head.number for head in registry.heads("tldr") if head.stored]


def states(registry: SqlRegistry) -> list[int]:
    return [head.number for head in registry.heads("tldr") if head.optimizer is not None]


def test_old_heads_are_let_go_and_stay_in_the_lineage(registry: SqlRegistry) -> None:
    grown(registry, 9)
    before = registry.heads("tldr")
    registry.set_alias("tldr", "best", 3, None)
    pruned = registry.prune("tldr", FEW, LATER)
    assert kept(registry) == [0, 3, 4, 8, 9]
    assert states(registry) == [3, 8, 9]  # aliased: best, previous, live
    assert (pruned.heads, pruned.optimizers) == ((1, 2, 5, 6, 7), (4,))
    assert sorted(pruned.keys) == sorted(
        [f"runs/k/{n}.{kind}" for n in (1, 2, 5, 6, 7) for kind in ("safetensors", "optimizer")]
        + ["runs/k/4.optimizer"]
    )
    gone = registry.head("tldr", 5)
    assert gone == replace(before[5], optimizer=None, pruned_at=LATER, pruned_why="retention")
    again = registry.prune("tldr", FEW, LATER + timedelta(days=1))
    assert (again.heads, again.optimizers, again.keys) == ((), (), ())
    assert registry.head("tldr", 5) == gone
    assert registry.next_head_number("tldr") == 10
    # Answered steps stay answered.
    assert registry.answered_step("tldr", "main", 5) is not None
    assert registry.head_after_step("tldr", "main", 5) == 5


def test_what_is_let_go_is_not_pointed_at_again(registry: SqlRegistry) -> None:
    grown(registry, 9)
    registry.prune("tldr", FEW, LATER)
    before = registry.run_state("tldr")
    with refuses(Code.HEAD_PRUNED, "head 5", "files were let go"):
        registry.set_alias("tldr", "mine", 5, None)
    with refuses(Code.HEAD_PRUNED, "head 5"):
        registry.open_branch("tldr", Branch(name="b1", live=5, step=5))
    with refuses(Code.HEAD_PRUNED, "head 4", "optimizer state was let go"):
        registry.open_branch("tldr", Branch(name="b1", live=4, step=4))
    assert registry.run_state("tldr") == before
    registry.set_alias("tldr", "mine", 4, None)  # it scores
    registry.open_branch("tldr", Branch(name="b1", live=0, step=0))  # t = 0 needs no state


def test_heads_of_the_last_steps_stay_over_branches(registry: SqlRegistry) -> None:
    grown(registry, 6)
    registry.open_branch("tldr", Branch("b1", 4, 4, "main", 4, 4))
    registry.commit_step(make_commit(5, 4, 7, branch="b1"))
    registry.prune("tldr", Keep(heads=1, every=0, staleness=3, optimizers=0), LATER)
    # main: 6 back to 3; b1: 5 (head 7), 4 (where it began), then main's 3 and 2.
    assert kept(registry) == [0, 2, 3, 4, 5, 6, 7]
    assert states(registry) == [4, 7]  # previous and live; what b1 left is `previous` no more
    registry.prune("tldr", Keep(heads=1, every=0, staleness=0, optimizers=0), LATER)
    assert kept(registry) == [0, 4, 6, 7]


def test_runs_do_not_mix_and_archived_ones_are_pruned_too(registry: SqlRegistry) -> None:
    from registry_makers import make_run

    registry.create_run(make_run("other"), make_head())
    for run in ("tldr", "other"):
        for step in range(1, 6):
            registry.commit_step(make_commit(step, step - 1, step, run=run))
    registry.archive_run("tldr")
    registry.prune("tldr", FEW, LATER)
    assert kept(registry) == [0, 4, 5]
    assert all(head.stored for head in registry.heads("other"))
    with refuses(Code.UNKNOWN_RUN):
        registry.prune("nobody", FEW, LATER)


def test_disk_use_is_of_what_is_kept(registry: SqlRegistry) -> None:
    grown(registry, 9)
    assert registry.disk_use() == {"tldr": DiskUse(10, 30, 9 * 2**40)}
    registry.prune("tldr", FEW, LATER)
    assert registry.disk_use("tldr") == {"tldr": DiskUse(4, 12, 2 * 2**40)}
    assert registry.disk_use("nobody") == {}
    named, runs = registry.stored_keys()
    assert named == {
        *(f"runs/k/{n}.safetensors" for n in (0, 4, 8, 9)),
        *(f"runs/k/{n}.optimizer" for n in (8, 9)),
    }
    assert runs == {"k-tldr"}


def test_many_heads_at_once(registry: SqlRegistry) -> None:
    grown(registry, 60)
    registry.prune("tldr", Keep(heads=1, every=0, staleness=0, optimizers=0), LATER)
    assert kept(registry) == [0, 59, 60]


def test_more_heads_than_one_statement_takes(
    registry: SqlRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r2m_service.registry.pruning._AT_ONCE", 7)
    grown(registry, 30)
    registry.prune("tldr", Keep(heads=1, every=0, staleness=0, optimizers=0), LATER)
    assert kept(registry) == [0, 29, 30]


def test_a_repair_is_one_change(registry: SqlRegistry) -> None:
    grown(registry, 4)
    for alias in ("best", "mine"):
        registry.set_alias("tldr", alias, 4, None)
    repair = Repair(
        "tldr",
        weights=frozenset({4}),
        optimizers=frozenset({2}),
        branch=Branch("b1", 3, 3, "main", 3, 3, "repaired: why"),
        aliases={"best": None, "mine": 1, "previous": 2, "candidate": None},
    )
    change = Change(LATER, "repaired", {"weights": [4]})
    registry.repair(repair, change)
    found = registry.run_state("tldr")
    assert found is not None
    assert (found.current, found.branch(None).live, found.branch(None).step) == ("b1", 3, 3)
    assert found.aliases == {"live": 3, "previous": 2, "mine": 1, "reference": 0}
    lost = registry.head("tldr", 4)
    assert lost is not None
    assert (lost.stored, lost.pruned_why, lost.pruned_at, lost.optimizer) == (
        False, "damaged", LATER, None,
    )  # fmt: skip
    assert states(registry) == [1, 3]
    assert registry.changes("tldr")[-1] == change
    # All or nothing: the branch exists by now.
    with refuses(Code.STORAGE_FAILED):
        registry.repair(replace(repair, weights=frozenset({1})), CHANGE)
    assert registry.head("tldr", 1).stored  # type: ignore[union-attr]
    assert registry.changes("tldr")[-1] == change


def test_nothing_that_a_concurrent_writer_needs_is_let_go(registry: SqlRegistry) -> None:
    """Aligns, aliases and rollbacks from other replicas, while two of them prune all the time."""
    done = threading.Event()
    tight = Keep(heads=1, every=0, staleness=0, optimizers=0)

    def prune() -> int:
        turns = 0
        while not done.wait(0.003):  # without a pause, SQLite's one lock is hardly ever free
            registry.prune("tldr", tight, LATER)
            turns += 1
        return turns

    def name() -> tuple[int, int]:
        moved = refused = 0
        while not done.wait(0.003):
            head = max(registry.next_head_number("tldr") - 3, 0)
            try:
                registry.set_alias("tldr", "mine", head, None)
                moved += 1
            except Problem as problem:
                assert problem.code is Code.HEAD_PRUNED
                refused += 1
        return moved, refused

    with ThreadPoolExecutor(3) as pool:
        pruning, naming = [pool.submit(prune) for _ in range(2)], pool.submit(name)
        try:
            branch = "main"
            for turn in range(40):
                state = registry.run_state("tldr")
                assert state is not None
                at = state.branch(None)
                number = registry.next_head_number("tldr")
                registry.commit_step(make_commit(at.step + 1, at.live, number, branch=branch))
                for pointed in (at.live, number):
                    head = registry.head("tldr", pointed)
                    # The parent is `previous` now: an align of another replica may be reading it.
                    assert head is not None
                    assert head.stored
                    assert head.t == 0 or head.optimizer is not None
                if turn % 10 == 9:
                    branch = f"b{turn}"
                    registry.open_branch("tldr", Branch(branch, number, at.step + 1))
        finally:
            done.set()
        assert all(one.result() > 0 for one in pruning)
        assert naming.result()[0] > 0
    state = registry.run_state("tldr")
    assert state is not None
    for number in {*state.aliases.values(), *(one.live for one in state.branches.values())}:
        assert registry.head("tldr", number).stored  # type: ignore[union-attr]
