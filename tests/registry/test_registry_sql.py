"""Every method of the registry, one after the other, in one thread."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_makers import START, SqlRegistry, make_commit, make_head, make_run, refuses
from sqlalchemy import event
from sqlalchemy.exc import StatementError

from r2m.errors import Code
from r2m_service.domain.runs import AnsweredStep, BlobRef, Branch, Change

if TYPE_CHECKING:
    from r2m_service.application.ports import (
        Registry,
    )
    from r2m_service.domain.runs import RunState


def state(registry: SqlRegistry, name: str = "tldr") -> RunState:
    found = registry.run_state(name)
    assert found is not None
    return found


def aliases(registry: SqlRegistry) -> dict[str, int]:
    return dict(state(registry).aliases)


def test_it_is_the_applications_registry(registry: SqlRegistry) -> None:
    port: Registry = registry
    assert port.run_state("tldr") is not None


# ------------------------------------------------------------------ runs


def test_a_new_run_stands_at_step_0_of_main(empty: SqlRegistry) -> None:
    run, first = make_run(), make_head()
    empty.create_run(run, first)
    found = state(empty)
    assert found.run == run
    assert found.current == "main"
    assert found.branches == {"main": Branch(name="main", live=0, step=0)}
    assert found.aliases == {"live": 0, "reference": 0}
    assert empty.heads("tldr") == [first]
    assert empty.next_head_number("tldr") == 1


def test_what_is_unknown_is_none(empty: SqlRegistry) -> None:
    assert empty.run_state("nobody") is None
    assert empty.run_states() == []
    assert empty.head("nobody", 0) is None
    assert empty.heads("nobody") == []
    assert empty.next_head_number("nobody") == 0
    assert empty.answered_step("nobody", "main", 1) is None
    assert empty.head_after_step("nobody", "main", 1) is None


def test_a_name_is_given_once(registry: SqlRegistry) -> None:
    other = make_run(key="another", fingerprint="e" * 64)
    with refuses(Code.RUN_EXISTS, "'tldr'"):
        registry.create_run(other, make_head())
    assert state(registry).run == make_run()
    assert len(registry.heads("tldr")) == 1


def test_an_archived_run_keeps_its_name_and_can_only_be_read(registry: SqlRegistry) -> None:
    registry.commit_step(make_commit(1, 0, 1))
    registry.archive_run("tldr")
    with refuses(Code.RUN_EXISTS):
        registry.create_run(make_run(key="another"), make_head())
    before = state(registry)
    assert before.run == replace(make_run(), archived=True)
    with refuses(Code.RUN_ARCHIVED):
        registry.commit_step(make_commit(2, 1, 2))
    with refuses(Code.RUN_ARCHIVED):
        registry.set_alias("tldr", "mine", 0, None)
    with refuses(Code.RUN_ARCHIVED):
        registry.open_branch("tldr", Branch(name="b", live=0, step=0))
    assert state(registry) == before
    assert registry.answered_step("tldr", "main", 1) is not None


def test_changing_an_unknown_run_is_refused(registry: SqlRegistry) -> None:
    with refuses(Code.UNKNOWN_RUN, "'nobody'"):
        registry.archive_run("nobody")
    with refuses(Code.UNKNOWN_RUN):
        registry.set_alias("nobody", "mine", 0, None)
    with refuses(Code.UNKNOWN_RUN):
        registry.commit_step(make_commit(1, 0, 1, run="nobody"))
    with refuses(Code.UNKNOWN_RUN):
        registry.open_branch("nobody", Branch(name="b", live=0, step=0))


def test_runs_come_oldest_first_each_with_its_own(empty: SqlRegistry) -> None:
    for name, days in (("a", 2), ("b", 1), ("c", 3)):
        run = make_run(name, created_at=START + timedelta(days=days))
        empty.create_run(run, make_head())
    empty.commit_step(make_commit(1, 0, 1, run="a"))
    empty.set_alias("c", "mine", 0, None)
    found = empty.run_states()
    assert [one.run.name for one in found] == ["b", "a", "c"]
    assert found == [empty.run_state(name) for name in ("b", "a", "c")]
    assert [one.branch(None).step for one in found] == [0, 1, 0]
    assert found[0].aliases == {"live": 0, "reference": 0}
    assert found[1].aliases == {"live": 1, "previous": 0, "candidate": 1, "reference": 0}
    assert found[2].aliases == {"live": 0, "reference": 0, "mine": 0}


# ------------------------------------------------------------------ heads


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    omega=st.floats(0, 1),
    metrics=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    moment=st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2200, 1, 1)),
    hours=st.integers(-12, 14),
    size=st.integers(0, 2**50),
)
def test_a_head_comes_back_as_it_was(
    registry: SqlRegistry,
    omega: float,
    metrics: dict[str, float],
    moment: datetime,
    hours: int,
    size: int,
) -> None:
    number = registry.next_head_number("tldr")
    head = make_head(
        number,
        0,
        omega=omega,
        metrics=metrics,
        created_at=moment.replace(tzinfo=timezone(timedelta(hours=hours))),
        optimizer=BlobRef("o", "2" * 64, size),
        accepted=False,
    )
    step = state(registry).branch(None).step + 1
    registry.commit_step(replace(make_commit(step, 0), candidate=head))
    found = registry.head("tldr", number)
    assert found == head
    assert found is not None
    assert found.created_at.tzinfo is UTC
    assert registry.heads("tldr")[-1] == head


def test_heads_are_in_order_of_their_numbers(registry: SqlRegistry) -> None:
    for step, made in ((1, 10), (2, 9), (3, 11)):
        registry.commit_step(replace(make_commit(step, 0), candidate=make_head(made, 0)))
    assert [head.number for head in registry.heads("tldr")] == [0, 9, 10, 11]
    assert registry.next_head_number("tldr") == 12


def test_a_time_without_a_zone_is_our_bug(registry: SqlRegistry) -> None:
    with pytest.raises(StatementError, match="without a time zone"):
        registry.commit_step(make_commit(1, 0, at=START.replace(tzinfo=None)))
    assert state(registry).branch(None).step == 0


@pytest.mark.parametrize("metric", [float("nan"), float("inf"), object()])
def test_a_metric_that_is_not_json_is_our_bug(registry: SqlRegistry, metric: object) -> None:
    candidate = make_head(1, 0, metrics={"bt": metric})
    with pytest.raises((ValueError, TypeError)):
        registry.commit_step(replace(make_commit(1, 0, 1), candidate=candidate))
    assert state(registry).branch(None).step == 0


# ------------------------------------------------------------------ steps


def test_a_step_is_answered_once_and_kept(registry: SqlRegistry) -> None:
    registry.commit_step(make_commit(1, 0, 1, answer='{"ω": "first"}'))
    before = state(registry)
    for other in (
        make_commit(1, 0, 1, answer="second"),
        make_commit(1, 0, 2, answer="second"),
        make_commit(1, 0, answer="second"),
        make_commit(1, 1, 2, answer="second"),
    ):
        with refuses(Code.ALIGN_CONFLICT, "step 1", "'main'"):
            registry.commit_step(other)
    assert registry.answered_step("tldr", "main", 1) == AnsweredStep("hash-1", '{"ω": "first"}')
    assert registry.head_after_step("tldr", "main", 1) == 1
    assert registry.answered_step("tldr", "main", 2) is None
    assert registry.head_after_step("tldr", "main", 2) is None
    assert state(registry) == before
    assert [head.number for head in registry.heads("tldr")] == [0, 1]


@pytest.mark.parametrize(
    ("step", "parent", "branch"), [(3, 1, "main"), (2, 0, "main"), (2, 1, "other"), (0, 1, "main")]
)
def test_the_branch_must_stand_where_the_commit_says(
    registry: SqlRegistry, step: int, parent: int, branch: str
) -> None:
    registry.commit_step(make_commit(1, 0, 1))
    before = state(registry)
    with refuses(Code.ALIGN_CONFLICT):
        registry.commit_step(make_commit(step, parent, 2, branch=branch))
    assert state(registry) == before
    assert registry.next_head_number("tldr") == 2
    assert registry.answered_step("tldr", branch, step) is None


def test_a_number_that_is_taken_is_a_conflict(registry: SqlRegistry) -> None:
    registry.open_branch("tldr", Branch(name="b", live=0, step=0))
    registry.commit_step(make_commit(1, 0, 1))
    with refuses(Code.ALIGN_CONFLICT):
        registry.commit_step(make_commit(1, 0, 1, branch="b"))
    assert registry.head("tldr", 1) == make_head(1, 0)
    assert state(registry).branch("b").step == 0


def test_live_is_the_parent_or_the_candidate(registry: SqlRegistry) -> None:
    registry.commit_step(make_commit(1, 0, 1))
    with pytest.raises(ValueError, match="live is the parent or the candidate"):
        registry.commit_step(make_commit(2, 1, 2, live=0))
    with pytest.raises(ValueError, match="live is the parent or the candidate"):
        registry.commit_step(make_commit(2, 1, live=0))


def test_a_version_whose_parent_does_not_exist_is_no_conflict(registry: SqlRegistry) -> None:
    candidate = make_head(1, 77)
    with refuses(Code.STORAGE_FAILED, "contradicts"):
        registry.commit_step(replace(make_commit(1, 0, 1), candidate=candidate))
    assert registry.next_head_number("tldr") == 1


# ------------------------------------------------------------------ aliases


def test_an_alias_moves_and_says_where_it_was(registry: SqlRegistry) -> None:
    registry.commit_step(make_commit(1, 0, 1))
    assert registry.set_alias("tldr", "mine", 1, None) is None
    assert registry.set_alias("tldr", "mine", 0, None) == 1
    assert registry.set_alias("tldr", "mine", 1, 0) == 0
    assert registry.set_alias("tldr", "mine", 1, 1) == 1
    assert registry.set_alias("tldr", "reference", 1, 0) == 0
    assert aliases(registry)["mine"] == 1
    assert aliases(registry)["reference"] == 1


def test_an_alias_that_is_elsewhere_does_not_move(registry: SqlRegistry) -> None:
    registry.set_alias("tldr", "mine", 0, None)
    with refuses(Code.ALIAS_MOVED, "points at 0, not at 1"):
        registry.set_alias("tldr", "mine", 0, 1)
    with refuses(Code.ALIAS_MOVED, "is not set"):
        registry.set_alias("tldr", "yours", 0, 0)
    assert "yours" not in aliases(registry)


def test_an_alias_points_at_a_head_that_exists(registry: SqlRegistry) -> None:
    with refuses(Code.UNKNOWN_HEAD, "no head 1"):
        registry.set_alias("tldr", "mine", 1, None)
    assert "mine" not in aliases(registry)


def test_live_previous_and_candidate_follow_the_current_branch(registry: SqlRegistry) -> None:
    registry.commit_step(make_commit(1, 0))  # an empty step
    assert aliases(registry) == {"live": 0, "reference": 0}
    registry.commit_step(make_commit(2, 0, 1))
    assert aliases(registry) == {"live": 1, "previous": 0, "candidate": 1, "reference": 0}
    registry.commit_step(make_commit(3, 1, 2))
    assert aliases(registry) == {"live": 2, "previous": 1, "candidate": 2, "reference": 0}
    registry.commit_step(make_commit(4, 2, 3, live=2))  # rejected
    assert aliases(registry) == {"live": 2, "previous": 1, "candidate": 3, "reference": 0}
    registry.commit_step(make_commit(5, 2))  # an empty step
    assert aliases(registry) == {"live": 2, "previous": 1, "candidate": 3, "reference": 0}
    assert state(registry).branch(None) == Branch(name="main", live=2, step=5)
    after = [registry.head_after_step("tldr", "main", step) for step in range(1, 6)]
    assert after == [0, 1, 2, 2, 2]


def test_aliases_do_not_follow_an_abandoned_branch(registry: SqlRegistry) -> None:
    registry.commit_step(make_commit(1, 0, 1))
    registry.open_branch("tldr", Branch(name="b", live=0, step=0))
    before = aliases(registry)
    registry.commit_step(make_commit(2, 1, 2))
    assert aliases(registry) == before
    assert state(registry).branch("main") == Branch(name="main", live=2, step=2)


# ------------------------------------------------------------------ branches


def test_a_rollback_opens_a_branch_and_moves_live(registry: SqlRegistry) -> None:
    for step in (1, 2, 3):
        registry.commit_step(make_commit(step, step - 1, step))
    branch = Branch("main-2", 1, 1, "main", 3, 3, reason="ω went wrong")
    registry.open_branch("tldr", branch)
    found = state(registry)
    assert found.current == "main-2"
    assert found.branches == {"main": Branch(name="main", live=3, step=3), "main-2": branch}
    assert found.aliases == {"live": 1, "previous": 3, "candidate": 3, "reference": 0}

    registry.commit_step(make_commit(2, 1, 4, branch="main-2"))
    assert aliases(registry) == {"live": 4, "previous": 1, "candidate": 4, "reference": 0}
    assert registry.head_after_step("tldr", "main", 2) == 2
    assert registry.head_after_step("tldr", "main-2", 2) == 4


def test_previous_stays_where_a_branch_does_not_move_live(registry: SqlRegistry) -> None:
    registry.commit_step(make_commit(1, 0, 1))
    registry.commit_step(make_commit(2, 1, 2))
    registry.open_branch("tldr", Branch(name="b", live=2, step=0))
    assert aliases(registry) == {"live": 2, "previous": 1, "candidate": 2, "reference": 0}
    assert state(registry).current == "b"


def test_a_branch_is_named_once(registry: SqlRegistry) -> None:
    registry.commit_step(make_commit(1, 0, 1))
    before = state(registry)
    with refuses(Code.ALIGN_CONFLICT, "'main'"):
        registry.open_branch("tldr", Branch(name="main", live=0, step=0))
    assert state(registry) == before


def test_a_branch_starts_at_a_head_that_exists(registry: SqlRegistry) -> None:
    before = state(registry)
    with refuses(Code.UNKNOWN_HEAD, "no head 5"):
        registry.open_branch("tldr", Branch(name="b", live=5, step=0))
    with refuses(Code.STORAGE_FAILED, "contradicts"):
        registry.open_branch("tldr", Branch(name="b", live=0, step=0, origin_head=5))
    assert state(registry) == before


# ------------------------------------------------------------------ transactions


def test_a_state_is_read_at_one_moment(registry: SqlRegistry) -> None:
    committed: list[int] = []

    def commit_in_between(*_: object) -> None:
        # After the first statement of the read: what follows must not show this.
        if not committed:
            committed.append(1)
            registry.commit_step(make_commit(1, 0, 1))

    reader = registry._reader
    event.listen(reader, "after_cursor_execute", commit_in_between)
    try:
        seen = state(registry)
    finally:
        event.remove(reader, "after_cursor_execute", commit_in_between)
    assert committed
    live_and_step = (seen.branch(None).live, seen.branch(None).step, seen.aliases["live"])
    assert live_and_step in {(0, 0, 0), (1, 1, 1)}
    assert state(registry).aliases["live"] == 1


def test_a_registry_is_the_same_when_opened_again(registry: SqlRegistry, url: str) -> None:
    registry.commit_step(make_commit(1, 0, 1))
    registry.open_branch("tldr", Branch("b", 0, 0, "main", 1, 1, "back"))
    before = (registry.run_states(), registry.heads("tldr"))
    registry.close()
    again = SqlRegistry(url)
    try:
        assert (again.run_states(), again.heads("tldr")) == before
        assert again.answered_step("tldr", "main", 1) == AnsweredStep("hash-1", '{"step": 1}')
        again.commit_step(make_commit(1, 0, 2, branch="b"))
    finally:
        again.close()


def test_changes_are_kept_in_order_with_what_they_changed(registry: SqlRegistry) -> None:
    (first,) = registry.changes("tldr")
    method = replace(make_run().method, alpha=0.5)
    second = Change(
        START + timedelta(seconds=1), "updated", {"alpha": [0.3, 0.5]}, "it sagged", "ops"
    )
    registry.update_method("tldr", method, second)
    assert registry.changes("tldr") == [first, second]
    state = registry.run_state("tldr")
    assert state is not None
    assert state.run.method == method
    registry.archive_run("tldr", Change(START, "archived", {}))
    for again in (
        lambda: registry.archive_run("tldr"),
        lambda: registry.update_method("tldr", method, second),
    ):
        with refuses(Code.RUN_ARCHIVED, "read-only"):
            again()
    assert len(registry.changes("tldr")) == 3
    assert registry.changes("nobody") == []
