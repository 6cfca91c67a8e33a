"""Cross attention of one query token over a ragged sequence, absorbed and in one pass.

The naive form (eq. 3) builds keys and values, 4·S·P·I operations a sample. One query token needs
neither: with u = W_k q / √d, a = softmax(h u) and c = aᵀ h, the attention's output is (c W_v) W_o,
and h is read once and only ever multiplied by vectors: 4·S·P operations.

The same pass yields j, all that the gradient of u needs (docs/algorithm.md): for a reward
r = z·c + …, ∂r/∂u = j = Σ_s a_s (h_s·z) h_s − (z·c) c.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 256
"""Tokens a step: the float32 copy of one chunk (4 MiB at P = 4096) is all that is held of h."""

GPU_CHUNK = 8192
"""The same on a GPU (128 MiB at P = 4096), where a step's cost is that of starting its kernels."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """What is kept of one sample's states: c_P, and j_P where a gradient is wanted."""

    c_P: Tensor
    j_P: Tensor | None


class OnlinePool:
    """Accumulates softmax(h u)ᵀ h, and j, over chunks of h: the online softmax.

    Sums are float32, whatever h is stored in.

    Args:
        u_P: the absorbed query, float32.
        z_P: the direction that the reward reads c in, (1 − ω) W_v W_o w; None: no j.
    """

    def __init__(self, u_P: Tensor, z_P: Tensor | None = None) -> None:
        self._u_P = u_P
        self._z_P = z_P
        # None: no tokens yet. Most responses are one chunk, whose sums are nobody's to rescale.
        self._maximum: Tensor | None = None
        self._sums: list[Tensor] = []
        self._offset: Tensor | None = None

    def update(self, h_SP: Tensor) -> None:
        """Take the next tokens, in any floating dtype."""
        h_SP = h_SP.float()  # bf16 products on a CPU are several times slower than the cast
        logits_S = h_SP @ self._u_P
        maximum, before = logits_S.max(), self._maximum
        if before is not None:
            maximum = torch.maximum(before, maximum)
        weights_S = torch.exp(logits_S - maximum)
        sums = [weights_S.sum(), weights_S @ h_SP]
        if self._z_P is not None:
            projected_S = h_SP @ self._z_P
            if self._offset is None:
                # j does not change when a constant is taken from every h_s·z, and the two terms
                # that cancel are then smaller: less of the difference is lost in float32.
                self._offset = projected_S.mean()
            sums.append((weights_S * (projected_S - self._offset)) @ h_SP)
        if before is not None:
            shrink = torch.exp(before - maximum)
            sums = [old * shrink + new for old, new in zip(self._sums, sums, strict=True)]
        self._maximum, self._sums = maximum, sums

    def finish(self) -> Pooled:
        """The pooled vectors of all tokens seen, one at least. Non-finite inputs show in c."""
        c_P = self._sums[1] / self._sums[0]
        if self._z_P is None or self._offset is None:
            return Pooled(c_P, None)
        j_P = self._sums[2] / self._sums[0] - (self._z_P @ c_P - self._offset) * c_P
        return Pooled(c_P, j_P)


def chunk_for(device: torch.device) -> int:
    """Tokens a step on a device."""
    return CHUNK if device.type == "cpu" else GPU_CHUNK


def pool(
    h_SP: Tensor, u_P: Tensor, z_P: Tensor | None = None, *, chunk: int | None = None
) -> Pooled:
    """C (and j) of one sample's states in one pass.

    Args:
        h_SP: S >= 1 tokens, any floating dtype.
        u_P, z_P: as in `OnlinePool`.
        chunk: tokens a step; None: what suits the device.
    """
    sums = OnlinePool(u_P, z_P)
    for part_SP in h_SP.split(chunk or chunk_for(u_P.device)):
        sums.update(part_SP)
    return sums.finish()
