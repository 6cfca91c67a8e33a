"""What split attention computes from hidden states, where they live: numpy or torch, any device.

With a = softmax(h u): c = aᵀ h, v·c, and j = Σ a_s (h_s·v) h_s − (v·c) c. One pass over h in
chunks, sums in float32 (docs/algorithm.md). torch is never imported: a tensor brings its own.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]

CHUNK = 1024
"""Tokens at once: the float32 copy of one chunk is all that is made of h."""


def fused(states: Any, u: Vector, v: Vector) -> Any:
    """v·c of one sample's states [S, D_p]: a float, or a 0-d tensor on their device."""
    if hasattr(states, "detach"):
        return _torch_sums(states, u, v, pooled=False)
    return _numpy_sums(states, u, v, pooled=False)


def pooled(states: Any, u: Vector, v: Vector) -> Any:
    """C and j of one sample's states, [2, D_p]: an array, or a tensor on their device."""
    if hasattr(states, "detach"):
        return _torch_sums(states, u, v, pooled=True)
    return _numpy_sums(states, u, v, pooled=True)


def _numpy_sums(states: Any, u: Vector, v: Vector, *, pooled: bool) -> Any:
    both = np.stack([u, v], axis=1)
    maximum, weight, told, offset = -math.inf, 0.0, 0.0, 0.0
    context, moment = np.zeros_like(u), np.zeros_like(u)
    for start in range(0, len(states), CHUNK):
        part = np.asarray(states[start : start + CHUNK], dtype=np.float32)
        logits, along = (part @ both).T
        if start == 0:
            # j is the same for every offset, and near the mean less of it is lost to rounding.
            offset = float(along.mean())
        along = along - np.float32(offset)
        higher = max(maximum, float(logits.max()))
        shrink = np.float32(math.exp(maximum - higher)) if start else np.float32(0)
        weights = np.exp(logits - np.float32(higher))
        maximum, weight = higher, weight * float(shrink) + float(weights.sum())
        told = told * float(shrink) + float(weights @ along)
        if pooled:
            context = context * shrink + weights @ part
            moment = moment * shrink + (weights * along) @ part
    if not pooled:
        return told / weight + offset
    c = context / np.float32(weight)
    return np.stack([c, moment / np.float32(weight) - np.float32(told / weight) * c])


def _torch_sums(states: Any, u: Vector, v: Vector, *, pooled: bool) -> Any:
    # torch is surely imported by whoever made this tensor.
    torch: Any = sys.modules["torch"]
    with torch.no_grad():
        both = torch.from_numpy(np.stack([u, v], axis=1)).to(states.device)
        maximum: Any = None
        weight: Any = None
        told: Any = None
        offset: Any = None
        context: Any = None
        moment: Any = None
        for part in states.detach().split(CHUNK):
            part = part.float()
            logits, along = (part @ both).unbind(1)
            if offset is None:
                offset = along.mean()
            along = along - offset
            higher = logits.max() if maximum is None else torch.maximum(maximum, logits.max())
            weights = torch.exp(logits - higher)
            sums = [weights.sum(), weights @ along]
            if pooled:
                sums += [weights @ part, (weights * along) @ part]
            if maximum is not None:
                shrink = torch.exp(maximum - higher)
                before = [weight, told, context, moment]
                sums = [old * shrink + new for old, new in zip(before, sums, strict=False)]
            maximum, weight, told = higher, sums[0], sums[1]
            context, moment = sums[2:] if pooled else (None, None)
        if not pooled:
            return told / weight + offset
        c = context / weight
        return torch.stack([c, moment / weight - (told / weight) * c])


def as_array(vector: Any) -> npt.NDArray[np.float32]:
    """An array of what the functions above gave."""
    if hasattr(vector, "detach"):
        vector = vector.cpu().numpy()
    return np.ascontiguousarray(vector, dtype="<f4")
