"""Hidden states in 8 bits: one number a place, one scale a channel and one a token. numpy only.

On the wire a value of dtype int8 and shape [S, D_p] is, little-endian and without a gap,

    channel scales    float32 [D_p]
    token scales      float32 [S]
    q                 int8 [S, D_p], row-major

    h[s, p] = q[s, p] · token[s] · channel[p]

The scales come first, so that every token can be used as it arrives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from r2m.errors import Code, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Float32s = npt.NDArray[np.float32]

LARGEST = 127
TINY = float(np.finfo(np.float32).tiny)


def scale_bytes(shape: Sequence[int]) -> int:
    """Bytes of the scales of a value of shape [S, D_p]."""
    return 4 * sum(shape)


def scales(data: Any, shape: Sequence[int]) -> tuple[Float32s, Float32s]:
    """The channel scales [D_p] and token scales [S] of a value's bytes: views of them."""
    tokens, width = shape
    both = np.frombuffer(data, "<f4", tokens + width)
    return both[:width], both[width:]


def require_scales(data: Any, shape: Sequence[int], *, field: str) -> None:
    """Refuse scales that no states can have.

    Raises:
        Problem: feedback_not_finite, with the first scale that is negative, NaN or infinite.
    """
    for kind, found in zip(("channel", "token"), scales(data, shape), strict=True):
        bad = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
        if len(bad):
            raise Problem(
                Code.FEEDBACK_NOT_FINITE,
                f"{len(bad)} of {len(found)} {kind} scales are negative, NaN or infinite, first "
                f"that of {kind} {bad[0]}: {found[bad[0]]}; finite scales >= 0 are needed",
                field=field,
            )


def decode(data: Any, shape: Sequence[int]) -> Float32s:
    """The states as float32 [S, D_p], in memory of their own. The server never does this."""
    channel, token = scales(data, shape)
    q = np.frombuffer(data, np.int8, offset=scale_bytes(shape)).reshape(tuple(shape))
    return q.astype(np.float32) * token[:, None] * channel


def encode(states: Any, channel: Float32s | None = None) -> tuple[tuple[int, int], memoryview]:
    """Shape and bytes of states: no number is clipped, the token's scale fits its largest one.

    NaN and infinity make their token's scale such, which the server refuses.

    Args:
        states: [S, D_p], float32: a numpy array, or a torch tensor, whose work is done where it
            lives.
        channel: the channel scales; None: from these states.

    Raises:
        ValueError: not two dimensions, or other than D_p channel scales.
    """
    if len(states.shape) != 2:
        raise ValueError(f"int8 needs shape [tokens, width], got {list(states.shape)}")
    shape = (int(states.shape[0]), int(states.shape[1]))
    if channel is not None and channel.shape != shape[1:]:
        raise ValueError(f"{len(channel)} channel scales do not fit states of width {shape[1]}")
    data: Any = np.zeros(scale_bytes(shape) + shape[0] * shape[1], np.uint8)
    if shape[0] and shape[1]:  # the server has the words for states without a token
        parts = _of_torch if hasattr(states, "detach") else _of_numpy
        channel_P, token_S, q_SP = parts(states, channel)
        both = data[: scale_bytes(shape)].view(np.float32)
        both[: shape[1]], both[shape[1] :] = channel_P, token_S
        data[scale_bytes(shape) :].view(np.int8).reshape(shape)[...] = q_SP
    return shape, memoryview(data)


def _of_numpy(states: Float32s, channel: Float32s | None) -> tuple[Any, Any, Any]:
    # What is not finite shows in the scales; the q that is made of it is of no use.
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if channel is None:
            channel = _flushed(np.abs(states).max(axis=0))
        scaled = states * np.where(channel > 0, 1 / channel, np.float32(0))
        token = _flushed(np.abs(scaled).max(axis=1) / np.float32(LARGEST))
        scaled *= np.where(token > 0, 1 / token, np.float32(0))[:, None]
        return channel, token, np.rint(scaled, out=scaled).astype(np.int8)


def _flushed(scale: Float32s) -> Float32s:
    """Without subnormal numbers, whose inverse is infinite."""
    return np.where(scale < TINY, np.float32(0), scale)


def _of_torch(states: Any, channel: Float32s | None) -> tuple[Any, Any, Any]:
    if channel is None:
        channel_P = states.abs().amax(dim=0)
        channel_P[channel_P < TINY] = 0
    else:
        channel_P = states.new_tensor(channel)  # where the states are
    scaled = states * _inverse(channel_P)
    token_S = scaled.abs().amax(dim=1) / LARGEST
    token_S[token_S < TINY] = 0
    scaled *= _inverse(token_S)[:, None]
    return channel_P.cpu().numpy(), token_S.cpu().numpy(), scaled.round_().char().cpu().numpy()


def _inverse(scale: Any) -> Any:
    return scale.reciprocal().where(scale > 0, scale.new_zeros(()))
