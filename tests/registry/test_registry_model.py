"""The registry against a model of it in dictionaries, over random histories."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from registry_makers import make_commit, make_head, make_run, refuses

from r2m.errors import Code
from r2m_service.domain.runs import AnsweredStep, Branch, RunState

if TYPE_CHECKING:
    from registry_makers import SqlRegistry

names = itertools.count()
few = st.integers(0, 5)


class Histories(RuleBasedStateMachine):
    """One run: aligns, right and stale, on all its branches; rollbacks; aliases."""

    def __init__(self, registry: SqlRegistry) -> None:
        super().__init__()
        self.registry = registry
        self.name = f"run-{next(names)}"
        self.run = make_run(self.name)
        registry.create_run(self.run, make_head())
        self.heads = [make_head()]
        self.branches = {"main": Branch(name="main", live=0, step=0)}
        self.current = "main"
        self.aliases = {"live": 0, "reference": 0}
        self.answers: dict[tuple[str, int], tuple[str, int]] = {}

    def _move_live(self, live: int) -> None:
        if live != self.aliases["live"]:
            self.aliases |= {"live": live, "previous": self.aliases["live"]}

    @rule(
        which=few,
        late=st.sampled_from([0, 0, 0, 1, -1]),
        stale=st.sampled_from([0, 0, 0, 1]),
        taken=st.sampled_from([0, 0, 0, 1]),
        outcome=st.sampled_from(["accepted", "rejected", "empty"]),
    )
    def align(self, which: int, late: int, stale: int, taken: int, outcome: str) -> None:
        branch = self.branches[sorted(self.branches)[which % len(self.branches)]]
        step, parent = branch.step + 1 + late, (branch.live + stale) % len(self.heads)
        made = None if outcome == "empty" else len(self.heads) - taken
        commit = make_commit(step, parent, made, run=self.name, branch=branch.name)
        if outcome == "rejected":
            commit = replace(commit, live=parent)
        right = late == 0 and parent == branch.live and (made is None or not taken)
        if not right:
            with refuses(Code.ALIGN_CONFLICT):
                self.registry.commit_step(commit)
            return
        self.registry.commit_step(commit)
        self.branches[branch.name] = replace(branch, step=step, live=commit.live)
        self.answers[branch.name, step] = (commit.answer, commit.live)
        if commit.candidate is not None:
            self.heads.append(commit.candidate)
        if branch.name == self.current:
            self._move_live(commit.live)
            if commit.candidate is not None:
                self.aliases["candidate"] = commit.candidate.number

    @rule(name=few, head=few, step=few)
    def roll_back(self, name: int, head: int, step: int) -> None:
        head %= len(self.heads)
        branch = Branch(f"b{name}", head, step, self.current, self.aliases["live"], step, "why")
        if branch.name in self.branches:
            with refuses(Code.ALIGN_CONFLICT):
                self.registry.open_branch(self.name, branch)
            return
        self.registry.open_branch(self.name, branch)
        self.branches[branch.name] = branch
        self.current = branch.name
        self._move_live(head)

    @rule(alias=st.sampled_from(["reference", "mine"]), head=few, expect=st.none() | few)
    def point(self, alias: str, head: int, expect: int | None) -> None:
        before = self.aliases.get(alias)
        if head >= len(self.heads):
            with refuses(Code.UNKNOWN_HEAD):
                self.registry.set_alias(self.name, alias, head, expect)
        elif expect not in {None, before}:
            with refuses(Code.ALIAS_MOVED):
                self.registry.set_alias(self.name, alias, head, expect)
        else:
            assert self.registry.set_alias(self.name, alias, head, expect) == before
            self.aliases[alias] = head

    @invariant()
    def agrees(self) -> None:
        found = self.registry.run_state(self.name)
        assert found == RunState(self.run, self.current, self.branches, self.aliases)
        assert self.registry.heads(self.name) == self.heads
        assert self.registry.next_head_number(self.name) == len(self.heads)
        for branch in self.branches.values():
            at = (self.name, branch.name, branch.step)
            answer, live = self.answers.get(at[1:], (None, None))
            expected = answer and AnsweredStep(f"hash-{branch.step}", answer)
            assert self.registry.answered_step(*at) == expected
            assert self.registry.head_after_step(*at) == live


def test_random_histories(empty: SqlRegistry) -> None:
    run_state_machine_as_test(
        lambda: Histories(empty),
        settings=settings(max_examples=25, stateful_step_count=25, deadline=None, derandomize=True),
    )
