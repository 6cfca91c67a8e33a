"""Rewards and gradients in closed form against the naive form and autograd; AdamW against torch."""

import pytest
import torch
from support import oracle

from r2m_service.modeling.attention import pool
from r2m_service.modeling.head import Head, first_head
from r2m_service.modeling.loss import GroupRewards, loss_of_groups
from r2m_service.modeling.update import AdamWStep, Moments, gradients

WIDTH_R, WIDTH_P, INNER, OMEGA = 20, 28, 16, 0.6
LENGTHS = (1, 2, 17, 64, 300, 512, 5, 9)


def batch(seed=0):
    draw = torch.Generator().manual_seed(seed)
    rte = torch.randn(len(LENGTHS), WIDTH_R, generator=draw, dtype=torch.float64)
    states = [torch.randn(n, WIDTH_P, generator=draw, dtype=torch.float64) for n in LENGTHS]
    return rte, states


def pooled(head, rte, states, omega=OMEGA):
    u = head.queries(rte)
    found = [pool(h, u[i], (1 - omega) * head.v_P) for i, h in enumerate(states)]
    return torch.stack([f.c_P for f in found]), torch.stack([f.j_P for f in found])


def adamw_step(*args, **rates):
    step = AdamWStep(*args, **rates)
    for name in step.names:
        step.update(name)
    return step.finish()


def single(tensors):
    return {name: tensor.float() for name, tensor in tensors.items()}


@pytest.mark.parametrize("bias", [True, False])
def test_rewards_equal_the_naive_form(bias):
    tensors = oracle.random_head(WIDTH_R, WIDTH_P, INNER, seed=1, bias=bias)
    rte, states = batch()
    head = Head(single(tensors), {})
    c, _ = pooled(head, rte.float(), [h.float() for h in states])
    found = head.parts(rte.float(), c).rewards(OMEGA)
    expected = oracle.rewards(tensors, rte, states, OMEGA)
    assert (found - expected).abs().max() < 1e-5 * expected.std()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("omega", [0.0, 0.6, 1.0])
def test_gradients_equal_autograd_of_the_naive_form(bias, omega):
    tensors = oracle.random_head(WIDTH_R, WIDTH_P, INNER, seed=2, bias=bias)
    rte, states = batch(1)
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    r = oracle.rewards(leaves, rte, states, omega)
    total = (oracle.grebt(r[:4], 0.3)[0] + oracle.grebt(r[4:], 0.3)[0]) / 2
    expected = dict(zip(leaves, torch.autograd.grad(total, leaves.values()), strict=True))

    head = Head(single(tensors), {})
    c, j = pooled(head, rte.float(), [h.float() for h in states], omega)
    rewards = head.parts(rte.float(), c).rewards(omega)
    loss = loss_of_groups(
        [GroupRewards(rewards[:4], None, None), GroupRewards(rewards[4:], None, None)],
        alpha=0.3,
        kl_weight=0.0,
    )
    assert loss.total == pytest.approx(float(total.detach()), abs=1e-6)
    found = gradients(head, omega=omega, g_N=loss.gradient_N, rte_NR=rte.float(), c_NP=c, j_NP=j)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(0.01, float(gradient.abs().max()))  # b's is zero but for rounding
        assert (found[name] - gradient).abs().max() < 1e-5 * scale, name
    if omega == 1.0:
        assert not found["w_q"].any()


def test_gradient_reaches_w_o_from_the_start_and_then_everything():
    rte, states = batch(2)
    rte, states = rte.float(), [h.float() for h in states]
    head = first_head(
        weight_R=torch.randn(WIDTH_R, generator=torch.Generator().manual_seed(9)),
        bias=torch.tensor(0.2),
        width_P=WIDTH_P,
        inner=INNER,
        seed=0,
        attends=True,
        metadata={},
    )
    moving = []
    moments = Moments.zeros(head)
    for _ in range(2):
        c, j = pooled(head, rte, states)
        rewards = head.parts(rte, c).rewards(OMEGA)
        loss = loss_of_groups([GroupRewards(rewards, None, None)], alpha=0.3, kl_weight=0.0)
        gradient = gradients(head, omega=OMEGA, g_N=loss.gradient_N, rte_NR=rte, c_NP=c, j_NP=j)
        moving.append({name for name, g in gradient.items() if g.any()})
        step = adamw_step(
            head, gradient, moments, learning_rate=1e-2, weight_decay=0.0, max_grad_norm=None
        )
        head, moments = Head(step.tensors, {}), step.moments
    assert {"w_o", "head.weight"} <= moving[0]
    assert {"w_q", "w_k", "w_v", "w_o", "head.weight"} <= moving[1]


def test_version_0_ranks_exactly_as_the_vanilla_model():
    rte, states = batch(3)
    rte, states = rte.float(), [h.float() for h in states]
    weight, bias = torch.randn(WIDTH_R), torch.tensor(-1.0)
    head = first_head(
        weight_R=weight, bias=bias, width_P=WIDTH_P, inner=INNER, seed=4, attends=True, metadata={}
    )
    assert head.blind
    c, _ = pooled(head, rte, states)
    found = head.parts(rte, c).rewards(OMEGA)
    assert torch.equal(found, OMEGA * (rte @ weight) + bias)
    again = first_head(
        weight_R=weight, bias=bias, width_P=WIDTH_P, inner=INNER, seed=4, attends=True, metadata={}
    )
    assert again.to_bytes() == head.to_bytes()
    assert head.tensors["w_v"].any()  # W_v = W_o = 0 together would never learn


@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_the_step_is_torchs_adamw(max_grad_norm):
    tensors = single(oracle.random_head(WIDTH_R, WIDTH_P, INNER, seed=6))
    theirs = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    reference = torch.optim.AdamW(theirs.values(), lr=1e-2, weight_decay=0.1)
    head, moments = Head(tensors, {}), Moments.zeros(Head(tensors, {}))
    draw = torch.Generator().manual_seed(7)
    for _ in range(4):
        gradient = {name: torch.randn(t.shape, generator=draw) for name, t in tensors.items()}
        for name, leaf in theirs.items():
            leaf.grad = gradient[name].clone()
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), max_grad_norm)
        reference.step()
        before = {name: t.clone() for name, t in head.tensors.items()}
        step = adamw_step(
            head, gradient, moments,
            learning_rate=1e-2, weight_decay=0.1, max_grad_norm=max_grad_norm,
        )  # fmt: skip
        assert all(torch.equal(before[name], head.tensors[name]) for name in before)
        # Through bytes and back: what a restarted server goes on with.
        head = Head.from_bytes(Head(step.tensors, {"t": step.moments.t}).to_bytes())
        moments = Moments.from_bytes(step.moments.to_bytes(), torch.device("cpu"))
    assert moments.t == head.metadata["t"] == 4
    for name, leaf in theirs.items():
        assert torch.equal(head.tensors[name], leaf.detach()), name


def test_a_step_that_is_not_finite_says_so():
    tensors = single(oracle.random_head(WIDTH_R, WIDTH_P, INNER, seed=8))
    head = Head(tensors, {})
    gradient = {name: torch.zeros_like(t) for name, t in tensors.items()}
    gradient["w_o"][0, 0] = float("inf")
    step = adamw_step(
        head, gradient, Moments.zeros(head),
        learning_rate=1e-2, weight_decay=0.0, max_grad_norm=1.0,
    )  # fmt: skip
    assert not step.finite


def test_a_head_that_does_not_fit_together_is_refused():
    tensors = single(oracle.random_head(WIDTH_R, WIDTH_P, INNER, seed=8))
    with pytest.raises(ValueError, match="tensors are"):
        Head({**tensors, "w_o": tensors["w_o"][:, :-1]}, {})
    with pytest.raises(ValueError, match="float32"):
        Head({name: t.double() for name, t in tensors.items()}, {})
