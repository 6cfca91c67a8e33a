"""Whole runs, a few steps long, of models that were trained for a second."""

import dataclasses

import numpy as np
import pytest
import torch

from lab import world
from lab.arms import CORE, DOUBTS, FROZEN, GUARDED, HEALTHY, LABELLED, MORE, SETS, SHUFFLED
from lab.rlhf import GROUPS, K, Rlhf, _paid
from lab.training import pair_accuracy

ALL = {arm.name: arm for arms in SETS.values() for arm in arms}
SPECIAL = (
    *("noise-25", "start-25", "strange-25", "frozen-kl", "frozen-scaled", "labelled-25-wrong"),
    "labelled-25-paid",
)
KINDS = [*CORE, *HEALTHY, *(arm for arm in (*MORE, *DOUBTS) if arm.name in SPECIAL)]


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
    seen = [int(h[0, 0]) // K for h in run._attended(batch, lambda: marks)]
    own = [place // K for place in range(GROUPS * K)]
    assert all(a != b for a, b in zip(seen, own, strict=True))
    assert sorted(seen) == own


def test_each_control_attends_to_what_its_name_says(start):
    def policy():
        return marks

    runs = {name: Rlhf(ALL[name], start, 0) for name in ("start-25", "strange-25", "noise-25")}
    batch = runs["start-25"]._sample()
    marks = torch.randn(GROUPS * K, world.PROMPT + 16, 64)
    began = start.policy.states(batch.tokens_NS)
    lengths = batch.lengths_N.tolist()
    for h, first, length in zip(
        runs["start-25"]._attended(batch, policy), began, lengths, strict=True
    ):
        assert torch.equal(h, first[:length])
        assert not h.requires_grad
    strange = runs["strange-25"]._attended(batch, policy)
    assert all(
        torch.equal(a, b) for a, b in zip(strange, [*batch.own[K:], *batch.own[:K]], strict=True)
    )
    # Whoever scores a step and who learns from it see the same noise; the next step sees other.
    noise = runs["noise-25"]
    scored, learnt = (noise._attended(batch, policy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(scored, learnt, strict=True))
    noise._at += 1
    assert not torch.equal(scored[0], noise._attended(batch, policy)[0])


def test_labels_teach_the_policy_itself_more_than_the_start_knows(start):
    arm = ALL["labels-25"].but("all", "", labelled=1.0)
    run = Rlhf(arm, start, 5).run(20)
    gold = run["gold"].mean(1)
    assert gold[-5:].mean() > gold[:5].mean()
    assert 0.3 < pair_accuracy(start.proxy, torch.Generator().manual_seed(0), 200) < 0.9
    # The best and the worst of each group, and nothing of the rest.
    for reward_N, gold_N in zip(run["reward"], run["gold"], strict=True):
        for reward_K, gold_K in zip(
            reward_N.reshape(GROUPS, K), gold_N.reshape(GROUPS, K), strict=True
        ):
            assert sorted(reward_K) in ([-1, *[0] * (K - 2), 1], [0] * K)
            if reward_K.any():
                assert gold_K[reward_K.argmax()] == gold_K.max()
                assert gold_K[reward_K.argmin()] == gold_K.min()
    assert run["labels"].sum() == sum(
        (r.reshape(GROUPS, K).max(1) == 1).sum() for r in run["reward"]
    )


def test_labels_take_the_place_of_rewards_where_there_are_some():
    reward_N = torch.arange(GROUPS * K).float()
    paid_GK = _paid(reward_N, [(2, 5), *[None] * (GROUPS - 1)]).view(GROUPS, K)
    assert paid_GK[0].tolist() == [0, 0, 1, 0, 0, -1, 0, 0]
    assert torch.equal(paid_GK[1:].flatten(), reward_N[K:])
    assert reward_N[0] == 0  # left as they were
    assert reward_N[5] == 5


def test_swapped_labels_are_the_same_labels_swapped(start):
    gold_N = torch.randn(GROUPS * K, generator=torch.Generator().manual_seed(0))
    right, wrong, some = (
        Rlhf(LABELLED.but("x", "", labelled=0.5, wrong=share), start, 3)._prefer(gold_N)
        for share in (0.0, 1.0, 0.3)
    )
    assert [pair and pair[::-1] for pair in right] == wrong
    assert any(right)
    assert all(one in (a, b) for one, a, b in zip(some, right, wrong, strict=True))


@pytest.mark.parametrize("base", ["labelled-25", "labels-25"])
def test_late_labels_teach_late(start, base):
    """Until they come nothing learns; then what the others knew, as it was then."""
    arm = ALL[base].but("x", "", labelled=1.0, late=2)
    late, soon = (Rlhf(one, start, 6) for one in (arm, dataclasses.replace(arm, late=0)))
    late.run(2)
    if base == "labels-25":
        assert all(
            torch.equal(a, b)
            for a, b in zip(late._policy.parameters(), start.policy.parameters(), strict=True)
        )
        late.run(1)
        soon.run(1)
        assert all(
            torch.equal(a, b)
            for a, b in zip(late._policy.parameters(), soon._policy.parameters(), strict=True)
        )
    else:
        assert late._learner.t == 0
        late.run(1)
        assert late._learner.t == 1


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="never late"):
        ALL["retrained-25"].but("x", "", late=2)


def test_scaled_advantages_do_not_know_the_reward_s_unit(start):
    runs = []
    for scale in (1.0, 100.0):
        run = Rlhf(ALL["frozen-scaled"], start, 7)
        tokens_NS = run._sample().tokens_NS
        reward_N = torch.randn(GROUPS * K, generator=torch.Generator().manual_seed(1))
        log_N = run._policy.log_probabilities(tokens_NS).sum(1)
        run._improve(log_N, scale * reward_N)
        runs.append([p.detach().clone() for p in run._policy.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*runs, strict=True))
