"""Every recorded reward, computed again from its head's weights and what it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from r2m.errors import Problem
from r2m_service.modeling.head import Head

Weights = Callable[[str, int, str], Head]
"""A head's weights by run, number and SHA-256; raises Problem where they are not kept."""


@dataclass(slots=True)
class Checked:
    """One head's recorded rewards beside recomputed ones.

    Attributes:
        exact: the same bit for bit.
        largest: the largest difference of the others.
        problem: why nothing could be recomputed.
    """

    run: str
    head: int
    samples: int = 0
    exact: int = 0
    largest: float = 0.0
    problem: str | None = None


def recompute(rows: Iterator[Mapping[str, Any]], weights: Weights) -> list[Checked]:
    """By run and head, in the order of their first reward."""
    found: dict[tuple[str, int], Checked] = {}
    heads: dict[tuple[str, int], Head | None] = {}
    for row in rows:
        key = row["run"], row["head"]
        checked = found.setdefault(key, Checked(*key))
        checked.samples += 1
        if key not in heads:
            try:
                heads[key] = weights(row["run"], row["head"], row["sha256"])
            except Problem as problem:
                heads[key], checked.problem = None, problem.message
        head = heads[key]
        if head is None:
            continue
        reward = reward_of(head, row, row["omega"])
        checked.exact += reward == row["reward"]
        checked.largest = max(checked.largest, abs(reward - row["reward"]))
    return list(found.values())


@torch.no_grad()
def reward_of(head: Head, row: Mapping[str, Any], omega: float) -> float:
    """r of one recorded sample, as the engine computes it."""
    c = vector(row["c"])
    c_NP = None if c is None or not head.attends else c[None]
    rte = vector(row["rte"])
    assert rte is not None
    # Where the states stayed with the trainer, v·c is what it said.
    fused_N = None if row["fused"] is None else torch.tensor([row["fused"]])
    return float(head.parts(rte[None], c_NP, fused_N).rewards(omega)[0])


def vector(values: list[float] | None) -> Tensor | None:
    """A recorded vector."""
    return None if values is None else torch.from_numpy(np.asarray(values, dtype=np.float32))
