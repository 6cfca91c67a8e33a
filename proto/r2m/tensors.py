"""Tensor values on the wire: dtype, shape and bytes. numpy only; nothing here executes anything.

A value is what a client sends of one sample's hidden states, before anybody trusts it:
`TensorValue.check` compares what it states with what it holds.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from r2m import int8
from r2m.errors import Code, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

Bytes = bytes | bytearray | memoryview

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}
"""The dtypes allowed on the wire, and the bytes of one number. int8 has scales besides (`int8`)."""

MAX_DIMENSION = 1 << 31


def wire_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes that a value of one of the dtypes and of shape [S, D_p] takes."""
    return math.prod(shape) * ITEM_BYTES[dtype] + (
        int8.scale_bytes(shape) if dtype == "int8" else 0
    )


@dataclass(frozen=True, slots=True)
class TensorValue:
    """A tensor as bytes: row-major, little-endian.

    Attributes:
        dtype: one of `ITEM_BYTES`.
        shape: for feedback [S, D_p].
        data: prod(shape) numbers; for int8 the scales before them (`r2m.int8`).
    """

    dtype: str
    shape: tuple[int, ...]
    data: Bytes

    def check(self, *, field: str = "feedback") -> None:
        """Refuse what cannot be a ragged sample's hidden states.

        Raises:
            Problem: feedback_dtype, feedback_shape or feedback_size, naming what was expected;
                feedback_not_finite for scales that no states can have. Other numbers are not
                looked at.
        """
        if self.dtype not in ITEM_BYTES:
            raise Problem(
                Code.FEEDBACK_DTYPE,
                f"dtype {self.dtype!r} is not one of {', '.join(ITEM_BYTES)}",
                field=f"{field}.dtype",
            )
        if len(self.shape) != 2 or not all(0 < n < MAX_DIMENSION for n in self.shape):
            raise Problem(
                Code.FEEDBACK_SHAPE,
                f"shape {list(self.shape)} is not [tokens, width] with at least one token",
                field=f"{field}.shape",
            )
        expected = wire_bytes(self.dtype, self.shape)
        if len(self.data) != expected:
            raise Problem(
                Code.FEEDBACK_SIZE,
                f"{self.dtype} of shape {list(self.shape)} takes {expected} bytes, "
                f"got {len(self.data)}",
                field=f"{field}.data",
            )
        if self.dtype == "int8":
            int8.require_scales(self.data, self.shape, field=f"{field}.data")


def decode_base64(text: str, *, field: str = "feedback.data") -> bytes:
    """Bytes of a base64 string.

    Raises:
        Problem: feedback_encoding.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(
            Code.FEEDBACK_ENCODING, f"data is not valid base64: {error}", field=field
        ) from None


def bfloat16_bytes(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round float32 to bfloat16, to nearest with ties to even; NaN stays NaN.

    Returns:
        The upper halves of the rounded numbers, of the same shape.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    nan = np.isnan(values)
    if nan.any():
        rounded = np.where(nan, np.uint32(0x7FC00000), rounded)
    return (rounded >> np.uint32(16)).astype(np.uint16)


def tensor_value(array: Any, *, dtype: str | None = "bfloat16") -> TensorValue:
    """A wire value from a numpy array, a torch tensor (any device) or a nested list.

    Args:
        array: numbers of shape [S, D_p]. torch is not imported: a tensor is known by its methods.
        dtype: what to send float32 and float64 as; None keeps float32. 16-bit inputs stay as
            they are, except for int8, whose channel scales are then those of these states.

    Raises:
        ValueError: for a dtype that is not allowed on the wire.
    """
    if dtype is not None and dtype not in ITEM_BYTES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(ITEM_BYTES)}")
    if dtype == "int8":
        return TensorValue(dtype, *int8.encode(float32(array)))
    if hasattr(array, "detach"):
        return _from_torch(array, dtype)
    values: npt.NDArray[Any] = np.asarray(array)
    if values.dtype.name == "bfloat16":  # ml_dtypes, which need not be installed here
        return _value("bfloat16", values.shape, np.ascontiguousarray(values).view(np.uint16))
    if values.dtype == np.float16:
        return _value("float16", values.shape, np.ascontiguousarray(values))
    single = np.ascontiguousarray(float32(values))
    wire = dtype or "float32"
    if wire == "bfloat16":
        return _value(wire, single.shape, bfloat16_bytes(single))
    if wire == "float16":
        with np.errstate(over="ignore"):  # an overflow becomes inf, which the server refuses
            return _value(wire, single.shape, single.astype(np.float16))
    return _value(wire, single.shape, single)


def float32(array: Any) -> Any:
    """An array, a nested list or a torch tensor as float32, where it lives.

    Raises:
        ValueError: these are no numbers.
    """
    if hasattr(array, "detach"):
        return array.detach().float()
    values: npt.NDArray[Any] = np.asarray(array)
    if values.dtype.kind not in "fiu" and values.dtype.name != "bfloat16":
        raise ValueError(f"hidden states are numbers, not {values.dtype}")
    return values.astype(np.float32, copy=False)


def _from_torch(tensor: Any, dtype: str | None) -> TensorValue:
    tensor = tensor.detach()
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        tensor, name = tensor.float(), "float32"
    if name == "float32" and dtype not in (None, "float32"):
        # The cast runs where the tensor lives, so that half the bytes leave the device.
        tensor = tensor.bfloat16() if dtype == "bfloat16" else tensor.half()
        name = dtype
    tensor = tensor.cpu().contiguous()
    if name == "bfloat16":  # numpy has no bfloat16: reinterpret as 16-bit integers, no copy
        tensor = tensor.view(dtype=_torch_int16(tensor))
    return _value(name, tuple(tensor.shape), tensor.numpy())


def _torch_int16(tensor: Any) -> Any:
    # torch is surely imported by whoever made this tensor; ask its module instead of importing it.
    import sys

    return sys.modules[type(tensor).__module__.split(".")[0]].int16


def _value(dtype: str, shape: Sequence[int], array: npt.NDArray[Any]) -> TensorValue:
    flat: Any = array.reshape(-1)
    return TensorValue(dtype, tuple(int(n) for n in shape), memoryview(flat).cast("B"))
