"""The retention rule against what it is for: everything that may still be asked for is kept."""

from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_service.domain.retention import Keep, Stored, prunable, recent_steps
from r2m_service.domain.runs import Branch

numbers = st.integers(0, 60)
keeps = st.builds(
    Keep,
    heads=st.integers(1, 12),
    every=st.integers(0, 12),
    staleness=st.integers(0, 6),
    optimizers=st.integers(0, 6),
)


class History:
    """A run made by aligns and rollbacks, and by hand what each step is scored by."""

    def __init__(self):
        self.branches = {"main": Branch("main", live=0, step=0)}
        self.current = "main"
        self.aliases = {"live": 0, "reference": 0}
        self.heads = {0: Stored(0, optimizer=False)}
        self.rows = {}  # (branch, step) -> live after it
        self.after = {"main": {0: 0}}  # whole lines, origins copied: what scores step s + 1
        self.made = {0: ("main", 0)}

    def align(self, outcome):
        on = self.branches[self.current]
        live = on.live
        if outcome != "empty":
            number = len(self.heads)
            self.heads[number] = Stored(number, optimizer=outcome == "accepted")
            self.made[number] = (self.current, on.step + 1)
            self.aliases["candidate"] = number
            live = number if outcome == "accepted" else live
        self._move(live)
        self.branches[self.current] = Branch(
            on.name, live, on.step + 1, on.origin_branch, on.origin_head, on.origin_step
        )
        self.rows[on.name, on.step + 1] = live
        self.after[on.name][on.step + 1] = live

    def _move(self, live):
        if live != self.aliases["live"]:
            self.aliases |= {"previous": self.aliases["live"], "live": live}

    def rollback(self, pick, *, to_step):
        if to_step:
            origin = sorted(self.branches)[pick % len(self.branches)]
            step = pick % (self.branches[origin].step + 1)
            head = self.after[origin][step]
        else:
            good = [n for n in self.heads if n == 0 or self.heads[n].optimizer]
            head = good[pick % len(good)]
            origin, step = self.made[head]
        name = f"b{len(self.branches)}"
        self.branches[name] = Branch(name, head, step, origin, head, step)
        self.after[name] = {s: h for s, h in self.after[origin].items() if s < step} | {step: head}
        self.current = name
        self._move(head)


# In runs of several aligns, so that branches grow longer than the staleness.
aligns = st.lists(st.sampled_from(["accepted"] * 3 + ["rejected", "empty"]), max_size=9)
moves_of = st.one_of(st.tuples(numbers, st.booleans()), st.tuples(st.just("alias"), numbers))
steps = st.lists(st.one_of(aligns, moves_of.map(lambda one: [one])), max_size=12).map(
    lambda parts: [one for part in parts for one in part]
)


def played(moves):
    history = History()
    for move in moves:
        if isinstance(move, str):
            history.align(move)
        elif move[0] == "alias":
            history.aliases["mine"] = move[1] % len(history.heads)
        else:
            history.rollback(move[0], to_step=move[1])
    return history


def found(history, keep):
    recent = recent_steps(history.branches, keep.staleness)
    heads = set(recent.heads)
    for span in recent.spans:
        for step in range(span.first, span.last + 1):
            row = history.rows.get((span.branch, step))
            if row is not None:
                heads.add(row)
    return heads


def ruled(history, keep):
    return prunable(
        history.heads.values(),
        branches=history.branches,
        current=history.current,
        aliases=history.aliases,
        recent=found(history, keep),
        keep=keep,
    )


@settings(max_examples=400)
@given(moves=steps, keep=keeps)
def test_the_last_steps_of_every_branch_are_found(moves, keep):
    history = played(moves)
    heads = found(history, keep) | {0}
    needed = {
        history.after[name][step]
        for name, branch in history.branches.items()
        for step in range(max(0, branch.step - keep.staleness), branch.step + 1)
    }
    assert heads == needed | {0}


@given(moves=steps, keep=keeps)
def test_what_may_be_asked_for_stays_and_nothing_else(moves, keep):
    history = played(moves)
    going = ruled(history, keep)
    kept = history.heads.keys() - going.heads
    last = sorted(history.heads)[-keep.heads :]
    reasons = (
        {0}
        | set(last)
        | {n for n in history.heads if keep.every and n % keep.every == 0}
        | set(history.aliases.values())
        | {branch.live for branch in history.branches.values()}
        | found(history, keep)
    )
    assert kept == reasons & history.heads.keys()
    # The next align goes on, and an aliased head can be gone back to.
    live = history.branches[history.current].live
    states = {n for n in kept if history.heads[n].optimizer} - going.optimizers
    for number in {live, *history.aliases.values()}:
        assert number in states or not history.heads[number].optimizer
    assert going.optimizers <= {n for n in kept if history.heads[n].optimizer}
    with_state = sorted(n for n in kept if history.heads[n].optimizer)
    extra = {live, *history.aliases.values()}
    last_states = with_state[-keep.optimizers :] if keep.optimizers else []
    assert states == {n for n in with_state if n in extra or n in last_states}


@given(moves=steps, keep=keeps)
def test_a_second_time_nothing_goes(moves, keep):
    history = played(moves)
    going = ruled(history, keep)
    history.heads = {
        n: Stored(n, optimizer=head.optimizer and n not in going.optimizers)
        for n, head in history.heads.items()
        if n not in going.heads
    }
    again = ruled(history, keep)
    assert not again.heads
    assert not again.optimizers


@given(moves=steps, keep=keeps, more=st.sampled_from(["heads", "staleness", "optimizers"]))
def test_to_keep_more_lets_go_of_no_more(moves, keep, more):
    history = played(moves)
    small = ruled(history, keep)
    values = {name: getattr(keep, name) for name in ("heads", "every", "staleness", "optimizers")}
    large = ruled(history, Keep(**{**values, more: values[more] + 2}))
    assert large.heads <= small.heads


def test_by_hand():
    history = played(["accepted"] * 10)
    going = ruled(history, Keep(heads=2, every=4, staleness=1, optimizers=2))
    # 10 and 9: last, live, previous, the last step's; 8, 4: every fourth; 0: for good.
    assert going.heads == {1, 2, 3, 5, 6, 7}
    assert going.optimizers == {4, 8}
    history.aliases["best"] = 4
    assert ruled(history, Keep(2, 4, 1, 2)).optimizers == {8}


def test_a_branch_that_began_before_its_origin_did():
    history = played(["accepted"] * 6)
    history.rollback(5, to_step=True)
    history.branches["b2"] = Branch("b2", 2, 2, "b1", 2, 2)
    recent = recent_steps(history.branches, 1)
    # main stands at 6: 6 and 5. b1 at 5 of main: 5 and 4. b2 at 2 of b1, which is main's: 2 and 1.
    rows = [(s.branch, n) for s in recent.spans for n in range(s.first, s.last + 1)]
    assert sorted(rows) == [("main", 1), ("main", 4), ("main", 5), ("main", 6)]
    assert recent.heads == {5, 2}
