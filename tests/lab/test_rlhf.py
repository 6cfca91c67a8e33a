"""Whole runs, a few steps long, of models that were trained for a second."""

import dataclasses

import numpy as np
import pytest
import torch

from lab import world
from lab.arms import CORE, FROZEN, GUARDED, HEALTHY, LABELLED, MORE, SETS, SHUFFLED
from lab.rlhf import GROUPS, K, Rlhf
from lab.training import pair_accuracy

ALL = {arm.name: arm for arms in SETS.values() for arm in arms}
KINDS = [*CORE, *HEALTHY, *(arm for arm in MORE if arm.name in ("noise-25", "frozen-kl"))]


@pytest.mark.parametrize("arm", KINDS, ids=lambda arm: arm.name)
def test_each_kind_of_arm_runs(start, arm):
    run = Rlhf(dataclasses.replace(arm, labelled=min(1.0, 4 * arm.labelled)), start, 1).run(3)
    assert run["reward"].shape == run["gold"].shape == (3, GROUPS * K)
    for key in ("reward", "gold", "vanilla", "length", "kl"):
        assert np.isfinite(run[key]).all()
    assert abs(run["kl"][0]) < 1e-5  # nothing has moved before the first sample
    assert run["kl"][-1] != 0
    if arm.reward == "learner":
        assert run["accepted"].sum() == 3


def test_a_run_leaves_its_start_as_it_was(start):
    before = [p.clone() for model in (start.policy, start.proxy) for p in model.parameters()]
    Rlhf(ALL["retrained-25"].but("all", "", labelled=1.0), start, 1).run(2)
    after = [p for model in (start.policy, start.proxy) for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_run_again_is_the_same_and_another_draw_is_not(start):
    one, two = (Rlhf(GUARDED, start, 4).run(3) for _ in range(2))
    assert all(np.array_equal(one[key], two[key], equal_nan=True) for key in one)
    again = Rlhf(ALL["frozen-again"], start, 4).run(1)
    assert not np.array_equal(Rlhf(FROZEN, start, 4).run(1)["gold"], again["gold"])


def test_arms_of_a_seed_begin_alike_and_version_0_rewards_as_the_frozen_one(start):
    frozen, ours = (Rlhf(arm, start, 2).run(1) for arm in (FROZEN, LABELLED))
    assert np.array_equal(frozen["gold"], ours["gold"])
    np.testing.assert_allclose(frozen["reward"], ours["reward"], atol=1e-4)


def test_another_samples_states_are_of_another_group(start):
    run = Rlhf(SHUFFLED, start, 0)
    batch = run._sample()
    marks = torch.arange(GROUPS * K).float()[:, None, None].expand(-1, world.PROMPT + 16, 4)
    seen = [int(h[0, 0]) // K for h in run._attended(batch, marks)]
    own = [place // K for place in range(GROUPS * K)]
    assert all(a != b for a, b in zip(seen, own, strict=True))
    assert sorted(seen) == own


def test_the_gold_teaches_more_than_the_start_knows(start):
    """A policy that is rewarded with the gold gets better, even within twenty steps."""
    gold = Rlhf(ALL["gold"], start, 5).run(20)["gold"].mean(1)
    assert gold[-5:].mean() > gold[:5].mean()
    assert 0.3 < pair_accuracy(start.proxy, torch.Generator().manual_seed(0), 200) < 0.9
