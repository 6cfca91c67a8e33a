"""The trained part: cross attention and scoring head, float32, and the rewards they give.

r(x, y, h) = φ((1 − ω) Ĥ + ω H_last)   (eq. 4), φ(x) = w·x + b, Ĥ = (c W_v) W_o   (eq. 3)
           = (1 − ω) v·c + ω w·H_last + b,   with v = W_v W_o w, one vector a head.

The two products are kept apart (`Parts`), so that a reward at another ω costs nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

ATTENTION = ("w_q", "w_k", "w_v", "w_o")
METADATA_KEY = "r2m"


@dataclass(frozen=True)
class Parts:
    """A batch's rewards before ω mixes them.

    Attributes:
        fused_N: v·c, zero where there is no attention.
        base_N: w·H_last.
        bias: b.
    """

    fused_N: Tensor
    base_N: Tensor
    bias: Tensor

    def rewards(self, omega: float) -> Tensor:
        """r_N at ω."""
        return (1.0 - omega) * self.fused_N + omega * self.base_N + self.bias


class Head:
    """One version's weights.

    Args:
        tensors: `w_q` (R, I), `w_k`, `w_v` (P, I), `w_o` (I, R), `head.weight` (1, R) and, where
            the reward model has one, `head.bias` (1); all float32. Without the attention's four,
            the head is a scoring head alone.
        metadata: what travels in its file beside the tensors.

    Raises:
        ValueError: shapes that do not fit together, or another dtype.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        # A file is read in any order; sums over all tensors (the gradient's norm) need one.
        self.tensors = dict(sorted(tensors.items()))
        self.metadata = dict(metadata)
        self._check()
        self.w_R = self.tensors["head.weight"][0]
        bias = self.tensors.get("head.bias")
        self.bias = self.w_R.new_zeros(()) if bias is None else bias[0]
        self.attends = "w_o" in self.tensors
        self.v_P: Tensor | None = None
        self.blind = not self.attends
        if self.attends:
            w_o_IR = self.tensors["w_o"]
            self.v_P = self.tensors["w_v"] @ (w_o_IR @ self.w_R)
            # With W_o = 0 the states cannot reach the reward: nobody need read them.
            self.blind = not bool(w_o_IR.any())

    def _check(self) -> None:
        width_R = self.tensors["head.weight"].shape[-1]
        expected: dict[str, tuple[int, ...]] = {"head.weight": (1, width_R)}
        if "head.bias" in self.tensors:
            expected["head.bias"] = (1,)
        if any(name in self.tensors for name in ATTENTION):
            inner, width_P = self.tensors["w_q"].shape[-1], self.tensors["w_k"].shape[0]
            expected |= {
                "w_q": (width_R, inner),
                "w_k": (width_P, inner),
                "w_v": (width_P, inner),
                "w_o": (inner, width_R),
            }
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if found != expected:
            raise ValueError(f"a head's tensors are {expected}, got {found}")
        other = {str(t.dtype) for t in self.tensors.values()} - {"torch.float32"}
        if other:
            raise ValueError(f"a head is float32, got {', '.join(sorted(other))}")

    def queries(self, rte_NR: Tensor) -> Tensor:
        """u_NP = W_k W_qᵀ H_last / √d, the absorbed queries."""
        w_q_RI = self.tensors["w_q"]
        return (rte_NR @ w_q_RI) @ self.tensors["w_k"].T / math.sqrt(w_q_RI.shape[1])

    def parts(self, rte_NR: Tensor, c_NP: Tensor | None, fused_N: Tensor | None = None) -> Parts:
        """Rewards before ω, from the RTEs and the pooled states.

        Args:
            rte_NR: reward token embeddings.
            c_NP: pooled states; None: the head is blind, or v·c is known.
            fused_N: v·c, where whoever holds the states computed it.
        """
        base_N = rte_NR @ self.w_R
        if fused_N is not None:
            return Parts(fused_N, base_N, self.bias)
        if c_NP is None or self.v_P is None:
            return Parts(torch.zeros_like(base_N), base_N, self.bias)
        return Parts(c_NP @ self.v_P, base_N, self.bias)

    def to(self, device: torch.device) -> Head:
        """The head on a device; itself if it is there already."""
        if self.w_R.device == device:
            return self
        return Head({name: t.to(device) for name, t in self.tensors.items()}, self.metadata)

    def to_bytes(self) -> bytes:
        """A safetensors file: the same head gives the same bytes.

        All metadata is one JSON value, since the format's own map has no fixed order.
        """
        tensors = {name: tensor.detach().cpu() for name, tensor in self.tensors.items()}
        return save(tensors, {METADATA_KEY: json.dumps(self.metadata, sort_keys=True)})

    @staticmethod
    def from_bytes(data: bytes) -> Head:
        """The head of a file made by `to_bytes`."""
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        return Head(load_aligned(data), json.loads(metadata.get(METADATA_KEY, "{}")))


def below(tensors: Mapping[str, Tensor], start: str, device: torch.device) -> dict[str, Tensor]:
    """Those whose names start so, without it: on a device, each in memory of its own.

    See `load_aligned` for why.
    """
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(start)}
    return {name.removeprefix(start): one.clone().to(device) for name, one in found.items()}


def load_aligned(data: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file, each in memory of its own.

    Read in place they would start wherever the file's bytes happen to lie, and BLAS promises the
    same bits only for the same alignment.
    """
    return {name: tensor.clone() for name, tensor in load(data).items()}


def first_head(
    *,
    weight_R: Tensor,
    bias: Tensor | None,
    width_P: int,
    inner: int,
    seed: int,
    attends: bool,
    metadata: Mapping[str, Any],
) -> Head:
    """Version 0: W_o = 0, so that it ranks as the frozen reward model; φ is a copy of its head.

    W_q, W_k, W_v are normal with variance 1/fan-in; the paper does not publish its start. W_o and
    W_v are never both zero: no gradient would reach either.

    Args:
        weight_R, bias: the frozen model's scoring head.
        width_P: D_p.
        inner: d.
        seed: of the draw, which is made on the CPU so that every device gets the same.
        attends: False: a scoring head alone.
        metadata: as in `Head`.
    """
    phi = weight_R.detach().float().cpu().clone()
    tensors = {"head.weight": phi[None, :]}
    if bias is not None:
        tensors["head.bias"] = bias.detach().float().cpu().reshape(1).clone()
    if attends:
        width_R = phi.shape[0]
        draw = torch.Generator().manual_seed(seed)

        def normal(rows: int) -> Tensor:
            return torch.randn(rows, inner, generator=draw) / math.sqrt(rows)

        tensors |= {
            "w_q": normal(width_R),
            "w_k": normal(width_P),
            "w_v": normal(width_P),
            "w_o": torch.zeros(inner, width_R),
        }
    return Head(tensors, metadata)
