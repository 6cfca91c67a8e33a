"""BT, GRE and KL against closed forms, bounds and autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import oracle

from r2m_service.modeling.loss import (
    GroupRewards,
    bradley_terry,
    group_reward_entropy,
    kl_to_reference,
    loss_of_groups,
    sigma,
)

REWARDS = st.lists(
    st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=3, max_size=8, unique=True
)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def test_bt_by_hand():
    assert float(bradley_terry(double(1.0), double(1.0))) == pytest.approx(math.log(2))
    assert float(bradley_terry(double(2.0), double(0.0))) == pytest.approx(
        math.log(1 + math.exp(-2.0))
    )
    assert float(bradley_terry(double(-500.0), double(500.0))) == pytest.approx(1000.0)


def test_gre_of_two_is_the_constant_of_the_method_and_has_no_gradient():
    for gap in (1e-3, 1.0, 50.0):
        r = double([0.0, gap]).requires_grad_()
        gre = group_reward_entropy(r)
        assert float(gre.detach()) == pytest.approx(0.365, abs=5e-4)
        p = math.exp(1) / (math.exp(1) + math.exp(-1))
        closed = -p * math.log(p) - (1 - p) * math.log(1 - p)
        assert float(gre.detach()) == pytest.approx(closed, abs=1e-9)
        (gradient,) = torch.autograd.grad(gre, r)
        assert gradient.abs().max() < 1e-9 / gap


@given(REWARDS, st.floats(0.1, 10), st.floats(-5, 5))
def test_gre_does_not_see_affine_changes(values, scale, shift):
    r = double(values)
    assert float(group_reward_entropy(r)) == pytest.approx(
        float(group_reward_entropy(scale * r + shift)), abs=1e-6
    )


@given(st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=8, max_size=8, unique=True))
def test_gre_of_eight_stays_in_its_range(values):
    assert 1.06 - 0.01 < float(group_reward_entropy(double(values))) < 1.97 + 0.01


def test_gre_is_floored_at_near_ties():
    r = double([0.0, 1e-9, 2e-9]).requires_grad_()
    (gradient,) = torch.autograd.grad(group_reward_entropy(r), r)
    assert gradient.abs().max() < 1e3  # without the floor: about 1e8
    assert float(group_reward_entropy(double([1.0, 1.0, 1.0]))) == pytest.approx(math.log(3))


def test_sigma_is_with_one_over_k():
    assert float(sigma(double([0.0, 2.0]))) == 1.0


def test_kl_by_hand():
    r, ref = double([1.0, 0.0]), double([0.0, 2.0])
    tau = 1.0
    p_ref = [1 / (1 + math.exp(2 / tau)), 1 / (1 + math.exp(-2 / tau))]
    p = [1 / (1 + math.exp(-1 / tau)), 1 / (1 + math.exp(1 / tau))]
    expected = sum(a * math.log(a / b) for a, b in zip(p_ref, p, strict=True))
    assert float(kl_to_reference(r, ref)) == pytest.approx(expected)
    assert float(kl_to_reference(ref, ref)) == pytest.approx(0.0, abs=1e-12)


@given(REWARDS, st.integers(0, 1000))
def test_kl_is_never_negative(values, seed):
    draw = torch.Generator().manual_seed(seed)
    ref = torch.randn(len(values), generator=draw, dtype=torch.float64)
    assert float(kl_to_reference(double(values), ref)) > -1e-9


def test_total_and_gradient_are_the_means_over_groups():
    groups = [double([0.3, -0.2, 1.1, 0.4]), double([2.0, 1.0, 0.5])]
    leaves = [g.clone().requires_grad_() for g in groups]
    parts = [oracle.grebt(leaf, 0.3) for leaf in leaves]
    total = sum(p[0] for p in parts) / 2
    expected = torch.cat(torch.autograd.grad(total, leaves))
    found = loss_of_groups([GroupRewards(g, None, None) for g in groups], alpha=0.3, kl_weight=0)
    assert found.total == pytest.approx(float(total.detach()))
    assert found.bt == pytest.approx(float(sum(p[1].detach() for p in parts) / 2))
    assert found.gre == pytest.approx(float(sum(p[2].detach() for p in parts) / 2))
    assert (found.gradient_N - expected).abs().max() < 1e-6
    assert found.kl is None


def test_the_reference_pulls():
    r, ref = double([0.0, 3.0, 1.0]), double([1.0, 0.0, 0.5])
    plain = loss_of_groups([GroupRewards(r, None, None)], alpha=0.3, kl_weight=0.0)
    pulled = loss_of_groups([GroupRewards(r, ref, None)], alpha=0.3, kl_weight=2.0)
    assert pulled.kl == pytest.approx(float(kl_to_reference(r, ref)))
    assert pulled.total == pytest.approx(plain.total + 2.0 * pulled.kl)
    # A reference without spread has nothing to hold on to.
    flat = loss_of_groups([GroupRewards(r, torch.zeros(3), None)], alpha=0.3, kl_weight=2.0)
    assert flat.kl is None
    assert flat.total == plain.total


def test_a_labelled_group_has_bt_alone_on_its_label():
    r = double([0.3, -0.2, 1.1, 0.4])
    found = loss_of_groups([GroupRewards(r, None, (1, 2))], alpha=0.3, kl_weight=0.0)
    assert found.gre is None
    assert found.gre_groups == 0
    assert found.total == pytest.approx(float(bradley_terry(r[1], r[2])))
    assert found.gradient_N[0] == found.gradient_N[3] == 0.0
    assert found.gradient_N[1] < 0 < found.gradient_N[2]


def test_two_samples_have_bt_alone():
    r = double([1.0, 0.0])
    found = loss_of_groups([GroupRewards(r, None, None)], alpha=0.3, kl_weight=0.0)
    assert found.gre is None
    assert found.total == found.bt == pytest.approx(math.log(1 + math.exp(-1.0)))


def test_equal_rewards_have_no_label_unless_somebody_gives_one():
    flat = torch.full((4,), 0.25)
    assert not GroupRewards(flat, None, None).has_label
    assert not GroupRewards(flat + torch.tensor([0, 0, 0, 1e-7]), None, None).has_label
    assert GroupRewards(flat, None, (0, 1)).has_label
    assert GroupRewards(torch.tensor([0.0, 1e-3]), None, None).has_label


def test_no_groups_is_an_error():
    with pytest.raises(ValueError, match="no group"):
        loss_of_groups([], alpha=0.3, kl_weight=0.0)
