"""safetensors files without torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r2m.tensors import TensorValue

_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def read(file: str) -> dict[str, TensorValue]:
    """The tensors of a file, as they are: bfloat16 too, which numpy has not.

    Raises:
        ValueError: it cannot be read, or is no safetensors file.
    """
    try:
        with open(file, "rb") as source:
            data = source.read()
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from None
    return tensors(data, file)


def tensors(data: bytes, name: str) -> dict[str, TensorValue]:
    """The tensors of a file's bytes.

    Raises:
        ValueError: they are no safetensors file, or hold other dtypes.
    """
    from r2m.tensors import TensorValue

    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
        header.pop("__metadata__", None)
        found: dict[str, TensorValue] = {}
        for key, entry in header.items():
            start, end = entry["data_offsets"]
            view = memoryview(data)[8 + size + start : 8 + size + end]
            found[key] = TensorValue(_NAMES[entry["dtype"]], tuple(entry["shape"]), view)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{name} is no safetensors file of 16- or 32-bit floats") from None
    return found
