"""The attention over 8-bit states against the naive form over what they stand for."""

import math

import pytest
import torch

from r2m_service.modeling.attention import pool
from r2m_service.modeling.quantized import Quantized, pool_quantized


def quantized(tokens, width, seed):
    draw = torch.Generator().manual_seed(seed)
    return Quantized(
        torch.randint(-128, 128, (tokens, width), generator=draw, dtype=torch.int8),
        torch.rand(tokens, generator=draw) / 100,
        torch.rand(width, generator=draw) * 3,
    )


def exact(states):
    return states.q_SP.double() * states.token_S.double()[:, None] * states.channel_P.double()


def naive(h, u, z):
    u = u.double().requires_grad_()
    c = torch.softmax(h @ u, dim=0) @ h
    (j,) = torch.autograd.grad(z.double() @ c, u)
    return c.detach(), j


@pytest.mark.parametrize("tokens", [1, 2, 255, 256, 257, 600])
def test_c_and_j_are_those_of_the_numbers_they_stand_for(tokens):
    states = quantized(tokens, 24, tokens)
    u, z = torch.randn(2, 24, generator=torch.Generator().manual_seed(1)) / math.sqrt(24) * 2
    c, j = naive(exact(states), u, z)
    found = pool_quantized(states, u, z)
    assert found.c_P.dtype == torch.float32
    assert (found.c_P - c).abs().max() < 1e-5
    assert (found.j_P - j).abs().max() < 2e-5
    assert pool_quantized(states, u).j_P is None


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e20, 1e30])
def test_how_a_scale_is_shared_out_does_not_matter(scale):
    """Token and channel scales that make up for each other, with products that would underflow."""
    states = quantized(40, 12, 5)
    other = Quantized(states.q_SP, states.token_S / scale, states.channel_P * scale)
    u, z = 1e-6 * torch.randn(2, 12, generator=torch.Generator().manual_seed(2))
    one, two = (pool_quantized(s, u, z) for s in (states, other))
    torch.testing.assert_close(two.c_P, one.c_P, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two.j_P, one.j_P, rtol=1e-3, atol=1e-10)


def test_states_of_zeros_and_silent_channels():
    states = quantized(5, 6, 7)
    silent = Quantized(states.q_SP, states.token_S, torch.zeros(6))
    u = torch.ones(6)
    assert (pool_quantized(silent, u, u).c_P == 0).all()
    states.channel_P[2] = 0
    found = pool_quantized(states, u)
    assert found.c_P[2] == 0
    torch.testing.assert_close(found.c_P, pool(exact(states).float(), u).c_P)


def test_what_overflows_shows_in_c():
    states = quantized(5, 6, 8)
    huge = Quantized(states.q_SP, torch.full((5,), 3e38), torch.full((6,), 3e38))
    assert not torch.isfinite(pool_quantized(huge, torch.ones(6)).c_P).all()
