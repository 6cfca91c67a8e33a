"""The absorbed one-pass attention against the naive form with autograd, one thread, float32.

Naive is eq. 3 as it is written: keys and values are built, the gradient is autograd's. Absorbed is
what the service runs (`modeling.attention`, `modeling.head`, `modeling.update`). Both get the same
h, RTEs, weights and ∂L/∂r, and their rewards and gradients are compared.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.measure import MIB, interleaved, peak_of, seconds
from bench.report import Table
from bench.scale import Scale
from r2m_service.modeling.attention import pool
from r2m_service.modeling.head import Head, first_head
from r2m_service.modeling.update import gradients

OMEGA = 0.6
WIDTH_R = 576
HEADLINE = (4096, 1024)


@dataclass(frozen=True)
class Inputs:
    """A batch: states [N, S, P], RTEs [N, R], ∂L/∂r [N]."""

    head: Head
    h_NSP: Tensor
    rte_NR: Tensor
    g_N: Tensor


def make_inputs(width_P: int, tokens: int, batch: int, *, inner: int, device: str) -> Inputs:
    """Random states and a head whose W_o is not zero."""
    draw = torch.Generator().manual_seed(0)
    first = first_head(
        weight_R=torch.randn(WIDTH_R, generator=draw) / math.sqrt(WIDTH_R),
        bias=None,
        width_P=width_P,
        inner=inner,
        seed=0,
        attends=True,
        metadata={},
    )
    w_o = torch.randn(inner, WIDTH_R, generator=draw) / math.sqrt(inner)
    head = Head({**first.tensors, "w_o": w_o}, {}).to(torch.device(device))
    return Inputs(
        head,
        torch.randn(batch, tokens, width_P, generator=draw).to(device),
        torch.randn(batch, WIDTH_R, generator=draw).to(device),
        torch.randn(batch, generator=draw).to(device),
    )


def naive_rewards(inputs: Inputs, tensors: dict[str, Tensor]) -> Tensor:
    """r_N by eq. 3 and 4, keys and values built."""
    q_NI = inputs.rte_NR @ tensors["w_q"]
    k_NSI = inputs.h_NSP @ tensors["w_k"]
    v_NSI = inputs.h_NSP @ tensors["w_v"]
    a_NS = torch.softmax((k_NSI @ q_NI[:, :, None])[..., 0] / math.sqrt(q_NI.shape[1]), dim=1)
    fused_NR = ((a_NS[:, None, :] @ v_NSI)[:, 0]) @ tensors["w_o"]
    final_NR = (1.0 - OMEGA) * fused_NR + OMEGA * inputs.rte_NR
    return final_NR @ tensors["head.weight"][0]


def naive_gradients(inputs: Inputs) -> dict[str, Tensor]:
    """∂(Σ g r)/∂(weights) by autograd."""
    leaves = {n: t.detach().clone().requires_grad_() for n, t in inputs.head.tensors.items()}
    (naive_rewards(inputs, leaves) * inputs.g_N).sum().backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def absorbed_rewards(inputs: Inputs) -> Tensor:
    """r_N as the service computes it."""
    u_NP = inputs.head.queries(inputs.rte_NR)
    pooled = [pool(h_SP, u_P) for h_SP, u_P in zip(inputs.h_NSP, u_NP, strict=True)]
    parts = inputs.head.parts(inputs.rte_NR, torch.stack([one.c_P for one in pooled]))
    return parts.rewards(OMEGA)


def absorbed_gradients(inputs: Inputs) -> dict[str, Tensor]:
    """The same gradients as the service computes them: one pass, then closed forms."""
    head = inputs.head
    assert head.v_P is not None
    z_P = (1.0 - OMEGA) * head.v_P
    u_NP = head.queries(inputs.rte_NR)
    pooled = [pool(h_SP, u_P, z_P) for h_SP, u_P in zip(inputs.h_NSP, u_NP, strict=True)]
    return gradients(
        head,
        omega=OMEGA,
        g_N=inputs.g_N,
        rte_NR=inputs.rte_NR,
        c_NP=torch.stack([one.c_P for one in pooled]),
        j_NP=torch.stack([one.j_P for one in pooled if one.j_P is not None]),
    )


def table(scale: Scale, say: Callable[[str], None]) -> Table:
    """Seconds and peak memory of both, forward and with gradients."""
    made = Table(
        "attention",
        f"Absorbed attention against the naive form (d = {scale.inner}, float32)",
        (
            "D_p × S × batch",
            "naive forward s",
            "absorbed s",
            "times",
            "naive with gradients s",
            "absorbed s",
            "times",
            "naive peak MiB",
            "absorbed MiB",
            "gradients differ",
        ),
        notes=[
            "Memory is what the process grew by at its most, with gradients; h itself was there "
            "before. The last column is the largest difference against the largest gradient, over "
            "all weights."
        ],
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        for width, tokens, batch in scale.attention:
            where = f"{width} × {tokens} × {batch}"
            inputs = make_inputs(width, tokens, batch, inner=scale.inner, device="cpu")
            row = _cell(inputs, scale, lambda what, at=where: say(f"{at}: {what}"))
            made.rows.append([where, *row])
            if (width, tokens) == HEADLINE or len(scale.attention) == 1:
                made.keys["absorbed_speedup_forward"] = row[2]
                made.keys["absorbed_speedup_backward"] = row[5]
                made.keys["absorbed_aa_spread"] = row[-1]
            made.rows[-1] = made.rows[-1][:-1]
            del inputs
            gc.collect()
    finally:
        torch.set_num_threads(threads)
    return made


def _cell(inputs: Inputs, scale: Scale, say: Callable[[str], None]) -> list[Any]:
    with torch.no_grad():
        absorbed_rewards(inputs)  # the first pass pays for fresh memory
        forward = interleaved(
            {
                "naive": lambda: seconds(lambda: naive_rewards(inputs, inputs.head.tensors)),
                "absorbed": lambda: seconds(lambda: absorbed_rewards(inputs)),
                "absorbed again": lambda: seconds(lambda: absorbed_rewards(inputs)),
            },
            rounds=scale.rounds,
            say=say,
        )
    absorbed_gradients(inputs)
    # The naive form takes seconds, so the round that its memory is watched in is its second one.
    backward = interleaved(
        {
            "naive with gradients": lambda: seconds(lambda: naive_gradients(inputs)),
            "absorbed with gradients": lambda: seconds(lambda: absorbed_gradients(inputs)),
        },
        rounds=max(1, scale.rounds - 1),
        say=say,
    )
    memory = [peak_of(lambda: absorbed_gradients(inputs)), peak_of(lambda: naive_gradients(inputs))]
    ours, theirs = absorbed_gradients(inputs), naive_gradients(inputs)
    # torch leaves the bias out where there is none; both have the same names.
    differ = max(
        float((ours[n] - theirs[n]).abs().max() / theirs[n].abs().max().clamp_min(1e-30))
        for n in theirs
    )
    return [
        forward.median("naive"),
        forward.median("absorbed"),
        forward.ratio("naive", "absorbed"),
        backward.median("naive with gradients"),
        backward.median("absorbed with gradients"),
        backward.ratio("naive with gradients", "absorbed with gradients"),
        memory[1] / MIB,
        memory[0] / MIB,
        f"{differ:.0e}",
        forward.spread("absorbed", "absorbed again"),
    ]
