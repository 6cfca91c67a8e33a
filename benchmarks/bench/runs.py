"""Runs, groups and states for the tables that align."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.texts import texts_of
from r2m_client import AlignResult, Client, Group, Sample

ANY_CANDIDATE: dict[str, Any] = {
    "spread_min": None,
    "spread_max": None,
    "rank_correlation_min": None,
}
"""A gate that a random head passes: what is measured is the work."""


def groups_of(
    *, count: int, size: int, tokens: int, states: int, width: int, seed: int
) -> list[Group]:
    """Groups of different texts of `tokens`, with random states [states, width] of the policy.

    A group's samples share no states; groups do, since nobody compares them.
    """
    texts = texts_of([tokens] * (count * size), seed=seed)
    draw = np.random.default_rng(seed)
    hidden = [
        draw.standard_normal((states, width), dtype=np.float32) if width else None
        for _ in range(size)
    ]
    return [
        Group(
            f"g{n}",
            [
                Sample(f"g{n}-{k}", "", texts[n * size + k], hidden[k], format="raw")
                for k in range(size)
            ],
        )
        for n in range(count)
    ]


def first_aligned(client: Client, run: str, *, width: int, inner: int) -> AlignResult:
    """A run whose live head attends: version 0's W_o is zero, one update later it is not.

    Raises:
        RuntimeError: no head became live.
    """
    client.create_run(run, policy_hidden_size=width, method={"width": inner, "gate": ANY_CANDIDATE})
    result = client.align(
        run,
        step=1,
        groups=groups_of(count=2, size=3, tokens=8, states=8, width=width, seed=9),
    )
    if not result.accepted:
        raise RuntimeError(f"the first update was not accepted: {result.verdict}")
    return result
