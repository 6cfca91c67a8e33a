"""Client bytes become torch tensors: no copy where the buffer allows it, nothing executed."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from r2m import int8
from r2m.errors import Code, Problem
from r2m.tensors import TensorValue
from r2m_service.modeling.quantized import Quantized

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# gRPC's buffers are read-only; the tensor is only ever read.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

ALIGNMENT = 64
"""Bytes; what torch itself aligns its tensors to."""


def states_tensor(value: TensorValue, device: torch.device) -> Tensor:
    """h_SP of a checked value, on a device."""
    flat = torch.frombuffer(value.data, dtype=DTYPES[value.dtype])
    if flat.dtype is torch.float32 and flat.data_ptr() % ALIGNMENT:
        # Where a request's bytes lie is chance, and BLAS promises the same bits only for the same
        # alignment. 16-bit numbers need no such copy: BLAS sees the float32 copies of their chunks.
        flat = flat.clone()
    return flat.reshape(value.shape).to(device)


def quantized_states(value: TensorValue, device: torch.device) -> Quantized:
    """States in 8 bits and their scales, of a checked value, on a device."""
    tokens, width = value.shape
    first = int8.scale_bytes(value.shape)
    # Few, and copied: they may lie at any address.
    scales = torch.frombuffer(bytearray(memoryview(value.data)[:first]), dtype=torch.float32)
    q_SP = torch.frombuffer(value.data, dtype=torch.int8, offset=first).reshape(tokens, width)
    channel_P, token_S = scales.to(device).split([width, tokens])
    return Quantized(q_SP.to(device), token_S, channel_P)


def pinned(size: int) -> npt.NDArray[np.uint8]:
    """New page-locked memory: what a GPU copies from without a detour, and aligned."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()


def require_finite(c_P: Tensor, h_SP: Tensor | None) -> None:
    """Refuse states that hold NaN or infinity.

    A non-finite number anywhere in h makes c non-finite, so h is only searched when c is.

    Args:
        h_SP: None for states that are finite by their form (8 bits with checked scales).

    Raises:
        Problem: feedback_not_finite, or reward_not_finite where finite states overflowed.
    """
    if bool(torch.isfinite(c_P).all()):
        return
    bad = [] if h_SP is None else torch.nonzero(~torch.isfinite(h_SP))
    if h_SP is not None and len(bad):
        token, place = (int(n) for n in bad[0])
        raise Problem(
            Code.FEEDBACK_NOT_FINITE,
            f"{len(bad)} of {h_SP.numel()} numbers are NaN or infinite, first at token {token}, "
            f"place {place}; finite numbers are needed",
            field="feedback.data",
        )
    raise Problem(
        Code.REWARD_NOT_FINITE, "the attention over these hidden states overflows float32"
    )
