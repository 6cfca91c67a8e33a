"""A trainer's calls in any order against a simple model of what a run is, over both transports."""

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.rollouts import WIDTH_P, groups, samples

from r2m_client import AliasMoved, Client, ServerError, StepConflict, StepOutOfOrder

METHOD = {"width": 8, "learning_rate": 0.006, "gate": {"freeze_after": None}}
"""So large a rate that the drift gate rejects some candidates."""
numbers = itertools.count()
any_number = st.integers(0, 1000)


def refused(code, call, kind=ServerError):
    try:
        call()
    except kind as error:
        assert error.code == code, error
    else:
        raise AssertionError(f"{code} was expected")


class Histories(RuleBasedStateMachine):
    """One run and its model: branches, what was live after each step, aliases, answers."""

    def __init__(self, clients, verdicts):
        super().__init__()
        self.verdicts = verdicts
        self.clients = clients
        self.run = f"history-{next(numbers)}"
        clients[0].create_run(self.run, policy_hidden_size=WIDTH_P, method=METHOD)
        self.heads = [(None, True)]  # parent, accepted
        self.branches = {"main": (0, 0)}  # live, step
        self.after = {("main", 0): 0}  # the head that was live after a step, of every branch
        self.current = "main"
        self.aliases = {"live": 0, "reference": 0}
        self.answers = {}
        self.rewards = {}

    def client(self, number):
        return self.clients[number % len(self.clients)]

    def move_live(self, head):
        if head != self.aliases["live"]:
            self.aliases |= {"live": head, "previous": self.aliases["live"]}

    def batch(self, seed):
        return groups(seed % 5, count=1, size=3) if seed % 6 else []

    @rule(by=any_number, seed=any_number)
    def align(self, by, seed):
        live, step = self.branches[self.current]
        answer = self.client(by).align(self.run, step=step + 1, groups=self.batch(seed))
        self.verdicts.add(answer.verdict)
        assert (answer.branch, answer.parent) == (self.current, live)
        if answer.candidate is not None:
            assert answer.candidate == len(self.heads)
            self.heads.append((live, answer.accepted))
            self.aliases["candidate"] = answer.candidate
        assert answer.head == (answer.candidate if answer.accepted else live)
        self.branches[self.current] = (answer.head, step + 1)
        self.after[self.current, step + 1] = answer.head
        self.answers[self.current, step + 1] = (answer, seed)
        self.move_live(answer.head)

    @precondition(lambda self: self.answers)
    @rule(by=any_number, which=any_number, other=st.sampled_from([0, 0, 1]))
    def retry(self, by, which, other):
        branch, step = sorted(self.answers)[which % len(self.answers)]
        answer, seed = self.answers[branch, step]
        sent = self.batch(seed) if not other else groups(77, count=1, size=2)
        again = lambda: self.client(by).align(  # noqa: E731
            self.run, step=step, groups=sent, branch=branch
        )
        if other:
            refused("step_conflict", again, StepConflict)
        else:
            assert again() == answer

    @rule(by=any_number, late=st.sampled_from([2, 3, 50]))
    def align_too_late(self, by, late):
        step = self.branches[self.current][1] + late
        refused(
            "step_out_of_order",
            lambda: self.client(by).align(self.run, step=step, groups=[]),
            StepOutOfOrder,
        )

    @precondition(lambda self: len(self.branches) > 1)
    @rule(by=any_number, which=any_number)
    def align_on_a_branch_that_was_left(self, by, which):
        left = sorted(self.branches.keys() - {self.current})
        branch = left[which % len(left)]
        step = self.branches[branch][1] + 1
        refused(
            "branch_left",
            lambda: self.client(by).align(self.run, step=step, groups=[], branch=branch),
        )

    @rule(by=any_number, head=any_number)
    def roll_back_to_a_head(self, by, head):
        head %= len(self.heads) + 1
        if head == len(self.heads):
            refused("unknown_head", lambda: self.client(by).rollback(self.run, to=head))
        elif not self.heads[head][1]:
            refused("invalid_request", lambda: self.client(by).rollback(self.run, to=head))
        else:
            # A head stands at the step that made it.
            step = min(s for (_, s), live in self.after.items() if live == head)
            self.opened(self.client(by).rollback(self.run, to=head), head, step)

    @rule(by=any_number, which=any_number)
    def roll_back_to_a_step(self, by, which):
        known = sorted(self.after)
        branch, step = known[which % len(known)]
        client = self.client(by)
        run = client.rollback(self.run, to_step=step, branch=branch, reason="older checkpoint")
        self.opened(run, self.after[branch, step], step)

    def opened(self, run, head, step):
        name = f"b{len(self.branches)}"
        assert (run.branch, run.head, run.step) == (name, head, step)
        self.branches[name] = (head, step)
        self.after[name, step] = head
        self.current = name
        self.move_live(head)

    @rule(by=any_number, head=any_number, expect=st.none() | any_number)
    def move_an_alias(self, by, head, expect):
        head %= len(self.heads)
        expect = expect if expect is None else expect % len(self.heads)
        before = self.aliases.get("mine")
        move = lambda: self.client(by).set_alias(self.run, "mine", head, expect=expect)  # noqa: E731
        if expect not in (None, before):
            refused("alias_moved", move, AliasMoved)
        else:
            assert move().previous == before
            self.aliases["mine"] = head

    @rule(by=any_number, which=any_number)
    def score(self, by, which):
        branch, step = sorted(self.after)[which % len(self.after)]
        found = self.client(by).score(samples(1), run=self.run, step=step + 1, branch=branch)
        assert found.head == self.after[branch, step]
        before = self.rewards.setdefault(found.head, found.rewards)
        spread = max(before) - min(before)
        for a, b in zip(found.rewards, before, strict=True):
            assert abs(a - b) <= 1e-5 * spread

    @invariant()
    def agrees(self):
        run = self.clients[0].run(self.run)
        live, step = self.branches[self.current]
        assert (run.branch, run.head, run.step) == (self.current, live, step)
        assert run.aliases == self.aliases
        assert {one.branch: (one.head, one.step) for one in run.branches} == self.branches
        heads = self.clients[-1].heads(self.run)
        assert [(one.parent, one.accepted) for one in heads] == self.heads


def test_random_histories(server):
    verdicts = set()
    with (
        Client(server.urls["http"], wire_dtype="float32", retries=0) as http,
        Client(server.urls["grpc"], wire_dtype="float32", retries=0) as grpc,
    ):
        run_state_machine_as_test(
            lambda: Histories((http, grpc), verdicts),
            settings=settings(
                max_examples=12, stateful_step_count=16, deadline=None, derandomize=True
            ),
        )
    # The histories were worth something.
    assert {"accepted", "rejected", "skipped"} <= verdicts
