"""The absorbed one-pass form against the naive form and autograd."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracle

from r2m_service.modeling.attention import OnlinePool, pool


def naive(h, u, z):
    """c and ∂(z·c)/∂u by autograd in float64."""
    h, u, z = h.double(), u.double().requires_grad_(), z.double()
    c = torch.softmax(h @ u, dim=0) @ h
    (j,) = torch.autograd.grad(z @ c, u)
    return c.detach(), j


@pytest.mark.parametrize("tokens", [1, 2, 3, 255, 256, 257, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_c_and_j_equal_autograd_at_ragged_lengths(tokens, dtype):
    draw = torch.Generator().manual_seed(tokens)
    h = torch.randn(tokens, 24, generator=draw, dtype=torch.float64)
    u, z = torch.randn(2, 24, generator=draw, dtype=torch.float64) / math.sqrt(24) * 2
    c, j = naive(h, u, z)
    if dtype == torch.float64:  # the production form sums in float32: compare at its precision
        h = h.float()
    found = pool(h.to(torch.float32), u.float(), z.float())
    assert (found.c_P - c).abs().max() < 1e-5
    assert (found.j_P - j).abs().max() < 1e-5


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 70),
    cuts=st.lists(st.integers(1, 69), max_size=6),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 10_000),
)
def test_any_chunking_gives_the_same_sums(tokens, cuts, scale, seed):
    draw = torch.Generator().manual_seed(seed)
    h = torch.randn(tokens, 8, generator=draw)
    u, z = torch.randn(2, 8, generator=draw) * scale
    edges = sorted({0, tokens, *(cut for cut in cuts if cut < tokens)})
    sums = OnlinePool(u, z)
    for start, end in itertools.pairwise(edges):
        sums.update(h[start:end])
    c, j = naive(h, u, z)
    found = sums.finish()
    assert (found.c_P - c).abs().max() < 1e-5
    assert (found.j_P - j).abs().max() <= 2e-5 * max(1.0, float(z.abs().max()))


def test_huge_logits_do_not_overflow():
    h = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    found = pool(h, torch.tensor([90.0, 1.0]), torch.tensor([1.0, 0.0]), chunk=1)
    assert torch.equal(found.c_P, torch.tensor([100.0, 0.0]))
    assert torch.isfinite(found.j_P).all()


def test_j_survives_a_large_common_offset():
    """Σ a (h·z) h and (z·c) c are then large and nearly equal: float32 alone would lose j.

    Over many draws, since the rounding of one depends on the processor.
    """
    ours, plain = [], []
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        h = torch.randn(100, 16, generator=draw)
        h[:, 0] += 1000.0
        u = torch.randn(16, generator=draw) * 0.1
        u[0] = 0.0
        z = torch.randn(16, generator=draw)
        z[0] = 3.0
        _, j = naive(h, u, z)
        a = torch.softmax(h @ u, dim=0)
        c = a @ h
        ours.append((pool(h, u, z).j_P - j)[1:])
        plain.append(((a * (h @ z)) @ h - (z @ c) * c - j)[1:])
        assert ours[-1].abs().max() < 2e-3 * j[1:].abs().max()
    error, without = (torch.stack(found).square().mean().sqrt() for found in (ours, plain))
    assert error < 0.75 * without


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_sums_are_float32_whatever_h_is_stored_in(stored):
    draw = torch.Generator().manual_seed(3)
    h = torch.randn(300, 12, generator=draw).to(stored)
    u, z = torch.randn(2, 12, generator=draw)
    c, j = naive(h, u, z)
    found = pool(h, u, z)
    assert found.c_P.dtype == torch.float32
    assert (found.c_P - c).abs().max() < 1e-5
    assert (found.j_P - j).abs().max() < 1e-5


def test_absorption_equals_keys_and_values():
    """r through u and v = W_v W_o w is eq. 3 and 4 through keys and values."""
    tensors = oracle.random_head(10, 14, 6, seed=5)
    draw = torch.Generator().manual_seed(6)
    rte = torch.randn(3, 10, generator=draw, dtype=torch.float64)
    states = [torch.randn(n, 14, generator=draw, dtype=torch.float64) for n in (1, 7, 40)]
    expected = oracle.rewards(tensors, rte, states, 0.6)
    u = (rte @ tensors["w_q"]) @ tensors["w_k"].T / math.sqrt(6)
    v = tensors["w_v"] @ tensors["w_o"] @ tensors["head.weight"][0]
    c = torch.stack([torch.softmax(h @ u[i], 0) @ h for i, h in enumerate(states)])
    absorbed = 0.4 * c @ v + 0.6 * rte @ tensors["head.weight"][0] + tensors["head.bias"][0]
    assert (absorbed - expected).abs().max() < 1e-14
