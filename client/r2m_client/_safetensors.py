"""A safetensors body in pieces, so that hidden states are sent from where they lie.

The safetensors package would join everything into one new buffer; a rollout batch is easily a
gigabyte. Layout: 8 bytes little-endian length of the header, the header (JSON, padded with spaces
to a multiple of 8), then the tensors' bytes at the offsets the header states.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from r2m_client._samples import Tensor

CONTENT_TYPE = "application/x-safetensors"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "U8"}
_WIDEST_FIRST = tuple(DTYPES)
PIECE_BYTES = 1 << 18


def json_bytes(value: object) -> bytes:
    """Compact JSON in UTF-8.

    Raises:
        ValueError: NaN, infinity, or a text that is not valid Unicode.
        TypeError: something JSON has no form for.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def safetensors_pieces(request: object, tensors: Iterable[Tensor]) -> list[bytes | memoryview]:
    """The file with metadata `request` (JSON) and one tensor per sample, named by its id.

    Of several tensors of one name the first is written: the server refuses the repeated id, which
    it sees in `request`.

    Returns:
        The header, then views of the tensors' bytes, none longer than `PIECE_BYTES`.

    Raises:
        ValueError: a sample is called `__metadata__`, which the format keeps for itself.
    """
    header: dict[str, object] = {"__metadata__": {"request": json_bytes(request).decode()}}
    # Wide numbers first: then every tensor starts at a multiple of its number's size.
    ordered = sorted(tensors, key=lambda tensor: _WIDEST_FIRST.index(tensor.value.dtype))
    views: list[memoryview] = []
    offset = 0
    for tensor in ordered:
        if tensor.name == "__metadata__":
            raise ValueError("a sample with hidden states cannot have the id '__metadata__'")
        if tensor.name in header:
            continue
        value = tensor.value
        header[tensor.name] = {
            "dtype": DTYPES[value.dtype],
            # int8 goes as bytes: the format has no name for numbers with scales, and what they are
            # stands in the request.
            "shape": [len(value.data)] if value.dtype == "int8" else list(value.shape),
            "data_offsets": [offset, offset + len(value.data)],
        }
        offset += len(value.data)
        views.append(memoryview(value.data))
    encoded = json_bytes(header)
    encoded += b" " * (-len(encoded) % 8)
    pieces: list[bytes | memoryview] = [len(encoded).to_bytes(8, "little") + encoded]
    pieces += [
        view[start : start + PIECE_BYTES]
        for view in views
        for start in range(0, len(view), PIECE_BYTES)
    ]
    return pieces
