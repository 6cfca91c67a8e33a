"""What becomes of a run whose files are lost."""

from datetime import UTC, datetime

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from r2m_service.domain.repair import REPAIRED, Lineage, plan_repair
from r2m_service.domain.runs import BlobRef, Branch, Head

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def head(number, parent, *, accepted=True, optimizer=True, pruned=False, branch="main", step=None):
    return Head(
        number=number,
        parent=parent,
        branch=branch,
        step=number if step is None else step,
        t=number,
        omega=0.6,
        reference=0,
        accepted=accepted,
        verdict="accepted" if accepted else "rejected",
        reason="",
        metrics={},
        created_at=NOW,
        weights=BlobRef(f"w{number}", "", 1),
        optimizer=BlobRef(f"o{number}", "", 2) if optimizer and number and accepted else None,
        pruned_at=NOW if pruned else None,
    )


def line(*heads, aliases=None, live=None, **changes):
    live = heads[-1].number if live is None else live
    given = {
        "run": "r",
        "key": "k",
        "archived": False,
        "current": "main",
        "branches": {"main": Branch("main", live=live, step=heads[-1].step)},
        "aliases": {"live": live, "reference": 0, **(aliases or {})},
        "heads": {one.number: one for one in heads},
    }
    return Lineage(**{**given, **changes})


FIVE = [head(0, None), *(head(n, n - 1) for n in range(1, 5))]


def plan(lineage, weights=(), optimizers=()):
    return plan_repair(lineage, weights=frozenset(weights), optimizers=frozenset(optimizers))


def test_a_lost_live_head_falls_back_on_a_new_branch():
    found = plan(line(*FIVE, aliases={"previous": 3, "candidate": 4, "best": 4}), weights=[4])
    assert (found.branch.name, found.branch.live, found.branch.step) == ("b1", 3, 3)
    assert (found.branch.origin_branch, found.branch.origin_head) == ("main", 3)
    assert found.branch.reason.startswith(REPAIRED)
    assert "weights of head 4" in found.branch.reason
    assert "go on with step 4" in found.branch.reason
    # `live` follows the branch; `previous` would be the lost head.
    assert found.aliases == {"candidate": None, "best": None, "previous": 2}


def test_a_lost_optimizer_state_of_live_falls_back_too_and_keeps_the_head():
    found = plan(line(*FIVE, aliases={"best": 4}), optimizers=[4])
    assert found.branch.live == 3
    assert "optimizer state of head 4" in found.branch.reason
    assert (found.weights, found.optimizers, found.aliases) == (set(), {4}, {})


def test_only_a_head_that_align_can_go_on_from_is_fallen_back_to():
    heads = [
        head(0, None),
        head(1, 0),
        head(2, 1, optimizer=False),  # let go
        head(3, 2, pruned=True),
        head(4, 3),
    ]
    assert plan(line(*heads), weights=[4]).branch.live == 1
    assert plan(line(*heads), weights=[4, 1]).branch.live == 0
    assert plan(line(*heads), weights=[4], optimizers=[1]).branch.live == 0
    assert plan(line(*heads), weights=[4, 0], optimizers=[1]) is None


def test_others_than_live_are_marked_and_the_run_goes_on():
    found = plan(line(*FIVE, aliases={"previous": 3, "best": 1}), weights=[1, 3], optimizers=[3, 2])
    assert found.branch is None
    assert found.weights == {1, 3}
    assert found.optimizers == {2}
    assert found.aliases == {"best": None, "previous": 2}


def test_reference_moves_to_its_newest_whole_ancestor_or_to_the_oldest_head():
    assert plan(line(*FIVE, aliases={"reference": 3}), weights=[3]).aliases == {"reference": 2}
    assert plan(line(*FIVE), weights=[0]).aliases == {"reference": 1}


def test_a_left_branch_is_not_reopened():
    branches = {"main": Branch("main", 4, 4), "b1": Branch("b1", 2, 2, "main", 2, 2)}
    found = plan(line(*FIVE, live=2, branches=branches, current="b1"), weights=[4])
    assert found.branch is None
    assert found.weights == {4}


def test_an_archived_run_is_only_marked():
    found = plan(line(*FIVE, archived=True, aliases={"best": 4}), weights=[4])
    assert (found.branch, found.aliases, found.weights) == (None, {}, {4})
    assert plan(line(*FIVE, archived=True), weights=range(5)) is None


def test_where_all_is_lost_nothing_is_planned():
    assert plan(line(*FIVE), weights=range(5)) is None


@pytest.mark.parametrize("rejected", [True, False])
def test_a_rejected_head_never_becomes_live_or_reference(rejected):
    heads = [head(0, None), head(1, 0, accepted=not rejected), head(2, 1)]
    found = plan(line(*heads, aliases={"reference": 2}), weights=[2])
    assert found.branch.live == (0 if rejected else 1)
    assert found.aliases["reference"] == (0 if rejected else 1)


@given(
    parents=st.lists(st.integers(0, 20), max_size=15),
    kinds=st.lists(st.sampled_from(["whole", "rejected", "bare", "pruned"]), min_size=15),
    weights=st.sets(st.integers(0, 15)),
    optimizers=st.sets(st.integers(0, 15)),
    pick=st.integers(0, 20),
    named=st.dictionaries(
        st.sampled_from(["previous", "candidate", "reference", "mine"]), st.integers(0, 20)
    ),
)
def test_any_run_ends_whole(parents, kinds, weights, optimizers, pick, named):
    heads = [head(0, None)]
    for number, (parent, kind) in enumerate(zip(parents, kinds, strict=False), 1):
        heads.append(
            head(
                number,
                parent % number,
                accepted=kind != "rejected",
                optimizer=kind == "whole",
                pruned=kind == "pruned",
            )
        )
    stored = [one.number for one in heads if one.stored]
    weights &= set(stored)
    optimizers &= {one.number for one in heads if one.stored and one.optimizer}
    live = [one.number for one in heads if one.resumable]
    aliases = {name: stored[n % len(stored)] for name, n in named.items()}
    accepted = [one.number for one in heads if one.accepted and one.stored]
    aliases["reference"] = accepted[pick % len(accepted)]
    lineage = line(*heads, aliases=aliases, live=live[pick % len(live)])
    found = plan(lineage, weights, optimizers)
    lost = {n for n in live if n in weights or (n in optimizers and n)}
    line_of_live = [lineage.heads[lineage.branches["main"].live]]
    line_of_live += lineage.ancestors(line_of_live[0].number)
    whole = [one.number for one in line_of_live if one.resumable and one.number not in lost]
    assert (found is None) == (not whole)
    assume(found is not None)
    assert (found.branch.live if found.branch else lineage.branches["main"].live) == whole[0]
    assert found.weights == weights
    after = dict(lineage.aliases)
    if found.branch:
        after |= {"previous": after["live"], "live": found.branch.live}
    after |= found.aliases
    for name, number in after.items():
        assert number not in weights, name
    assert lineage.heads[after["reference"]].accepted
