"""Controls in a version's optimizer file, beside the live head's own state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from r2m.errors import Code, Problem
from r2m_service.domain.method import ControlKind
from r2m_service.modeling.head import Head, below
from r2m_service.modeling.update import Moments

PREFIX = "control."
ASKED = f"{PREFIX}asked"
"""Pairs that the controls have been asked, by a hash of their texts: what was learnt from tells
nothing any more."""


def with_controls(
    moments: Moments,
    arms: Sequence[tuple[str, Head, Moments]],
    asked: NDArray[np.int64],
) -> bytes:
    """The live head's optimizer file with the controls' weights and moments in it.

    Args:
        moments: the live head's.
        asked: names of the pairs that the controls have been asked.
    """
    tensors = moments.to_tensors()
    tensors[ASKED] = torch.from_numpy(asked)
    for kind, head, theirs in arms:
        at = f"{PREFIX}{kind}."
        tensors |= {f"{at}weight.{name}": t.cpu() for name, t in head.tensors.items()}
        tensors |= {f"{at}{name}": t for name, t in theirs.to_tensors().items()}
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

    theirs = {
        name.removeprefix(at): tensor for name, tensor in stored.items() if name.startswith(at)
    }
    return Head(below(theirs, "weight.", device), {}), Moments.from_tensors(theirs, device)
