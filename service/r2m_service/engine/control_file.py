"""Controls in a version's optimizer file, beside the live head's own state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from r2m.errors import Code, Problem
from r2m_service.domain.method import ControlKind
from r2m_service.modeling.head import Head
from r2m_service.modeling.update import Moments

PREFIX = "control."
ASKED = f"{PREFIX}asked"
"""Pairs that the controls have been asked, by a hash of their texts: what was learnt from tells
nothing any more."""


def with_controls(
    optimizer: bytes,
    arms: Sequence[tuple[str, Head, Moments]],
    asked: NDArray[np.int64],
) -> bytes:
    """The live head's optimizer file with the controls' weights and moments in it.

    Args:
        asked: names of the pairs that the controls have been asked.
    """
    tensors = dict(load(optimizer))
    tensors[ASKED] = torch.from_numpy(asked)
    for kind, head, moments in arms:
        at = f"{PREFIX}{kind}."
        tensors |= {f"{at}weight.{name}": t.cpu() for name, t in head.tensors.items()}
        tensors |= {f"{at}first.{name}": t.cpu() for name, t in moments.first.items()}
        tensors |= {f"{at}second.{name}": t.cpu() for name, t in moments.second.items()}
        tensors[f"{at}t"] = torch.tensor([moments.t], dtype=torch.int64)
    return save(tensors)


def read_asked(stored: Mapping[str, Tensor]) -> NDArray[np.int64]:
    """Names of the pairs that were asked. Raises Problem(head_damaged)."""
    if ASKED not in stored:
        raise Problem(Code.HEAD_DAMAGED, "the optimizer state to go on from has no controls")
    return stored[ASKED].numpy()


def unasked(pairs: Sequence[int | None], asked: NDArray[np.int64]) -> dict[int, int]:
    """Where a pair comes that was not asked before: its place, and its name.

    Args:
        pairs: of each group, None where it has no label; what comes twice is news once.
    """
    first = {pair: place for place, pair in reversed([*enumerate(pairs)]) if pair is not None}
    names = np.array([*first], dtype=np.int64)
    known = np.isin(names, asked)
    return {first[int(pair)]: int(pair) for pair in names[~known]}


def read_control(
    kind: ControlKind, stored: Mapping[str, Tensor], device: torch.device
) -> tuple[Head, Moments]:
    """A control's weights and moments. Raises Problem(head_damaged)."""
    at = f"{PREFIX}{kind}."
    if f"{at}t" not in stored:
        raise Problem(
            Code.HEAD_DAMAGED, f"the optimizer state to go on from has no control {kind!r}"
        )

    def part(name: str) -> dict[str, Tensor]:
        start = f"{at}{name}."
        # Each in memory of its own: BLAS promises the same bits only for the same alignment.
        return {
            key.removeprefix(start): tensor.clone().to(device)
            for key, tensor in stored.items()
            if key.startswith(start)
        }

    moments = Moments(int(stored[f"{at}t"]), part("first"), part("second"))
    return Head(part("weight"), {}), moments
