"""Safetensors bodies: decoded without a copy, and their tensors put into the request's samples.

The format is an 8-byte little-endian header length, a JSON header, and the tensors' bytes. It is
read here by hand: a body is untrusted, its tensors may be of any dtype (a wrong one is its
sample's error, not the call's), and the views go to the device without numpy or torch between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from r2m.errors import Code, Problem
from r2m.tensors import Bytes, TensorValue
from r2m_service.application.parsing import excerpt, read_json

MAX_HEADER_BYTES = 16 << 20
_METADATA = "__metadata__"

# The wire's names and item sizes of the format's dtypes. Others keep their name in lower case.
_DTYPES: dict[str, tuple[str, int]] = {
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "C64": ("complex64", 8),
}


def decode(body: Bytes) -> tuple[object, dict[str, TensorValue]]:
    """The request in the metadata, and the tensors as views into the body.

    Raises:
        Problem: invalid_request for a malformed file, too_large for a header beyond its bound.
    """
    if len(body) < 8:
        raise _malformed("it ends within the length of its header")
    size = int.from_bytes(body[:8], "little")
    if size > len(body) - 8:
        raise _malformed("it ends within its header")
    if size > MAX_HEADER_BYTES:
        raise Problem(
            Code.TOO_LARGE, f"a safetensors header may have {MAX_HEADER_BYTES} bytes, got {size}"
        )
    header = read_json(bytes(body[8 : 8 + size]), what="the safetensors header", surrogates=True)
    if not isinstance(header, dict):
        raise _malformed("its header is not an object")
    entries = cast("dict[str, object]", header)
    metadata = entries.pop(_METADATA, None)
    request = metadata.get("request") if isinstance(metadata, dict) else None
    if not isinstance(request, str):
        raise Problem(
            Code.INVALID_REQUEST,
            "the safetensors metadata has no string `request` with the JSON request",
            field="__metadata__.request",
        )
    tensors = _tensors(entries, memoryview(body), 8 + size)
    return read_json(request, what="the metadata's `request`", surrogates=True), tensors


def _tensors(entries: dict[str, object], body: memoryview, first: int) -> dict[str, TensorValue]:
    buffer = body[first:]
    spans: list[tuple[int, int, str, str, tuple[int, ...]]] = []
    for name, entry in entries.items():
        spans.append(_span(name, entry))
    # As the reference implementation has it: the tensors cover the buffer, with no hole, no
    # overlap and nothing behind them, in whatever order the header lists them.
    spans.sort()
    at = 0
    tensors: dict[str, TensorValue] = {}
    for start, end, name, stored, shape in spans:
        if start != at:
            raise _malformed(f"the offsets of {excerpt(name)} leave a hole or overlap")
        at = end
        dtype, item = _DTYPES.get(stored, (stored.lower()[:20], 0))
        if item and _bytes_of(shape, item, end - start) != end - start:
            raise _malformed(f"the offsets of {excerpt(name)} do not fit its dtype and shape")
        view = buffer[start:end]
        # Where a header was not padded to 8 bytes, numbers may start at odd addresses, which not
        # every reader further in can take.
        aligned = not item or (first + start) % item == 0
        tensors[name] = TensorValue(dtype, shape, view if aligned else bytearray(view))
    if at != len(buffer):
        raise _malformed("the last tensor does not end where the body ends")
    return tensors


def _span(name: str, entry: object) -> tuple[int, int, str, str, tuple[int, ...]]:
    if not isinstance(entry, dict):
        raise _malformed(f"the entry of {excerpt(name)} is not an object")
    known = cast("dict[str, object]", entry)
    dtype, shape = known.get("dtype"), _whole(known.get("shape"))
    offsets = _whole(known.get("data_offsets"))
    if len(known) != 3 or not isinstance(dtype, str) or shape is None or offsets is None:
        raise _malformed(f"the entry of {excerpt(name)} is not dtype, shape and data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _malformed(f"the offsets of {excerpt(name)} are not [start, end]")
    return offsets[0], offsets[1], name, dtype, shape


def _whole(value: object) -> tuple[int, ...] | None:
    """A list of whole numbers of at least 0, or None."""
    if not isinstance(value, list):
        return None
    numbers = cast("list[object]", value)
    if not all(type(one) is int and 0 <= one < 1 << 63 for one in numbers):
        return None
    return tuple(cast("list[int]", numbers))


def _bytes_of(shape: tuple[int, ...], item: int, bound: int) -> int:
    """Bytes of a tensor; given up as soon as they pass the bound."""
    if 0 in shape:
        return 0
    total = item
    for size in shape:
        total *= size
        if total > bound:
            return -1
    return total


def _malformed(why: str) -> Problem:
    return Problem(Code.INVALID_REQUEST, f"the body is not a valid safetensors file: {why}")


def attach(request: object, tensors: Mapping[str, TensorValue]) -> object:
    """The request with every tensor in the feedback of the sample whose id it carries.

    The request is not validated yet: what has another form than samples in lists is left as it is,
    for the validation to refuse.

    Raises:
        Problem: invalid_request (a tensor without a sample, or unlike what its sample states) or
            duplicate_id.
    """
    left = dict(tensors)
    seen: set[str] = set()
    for sample, path in _samples(request):
        name = sample.get("id")
        if not isinstance(name, str):
            continue
        if name in seen:
            raise Problem(
                Code.DUPLICATE_ID,
                f"two samples have the id {excerpt(name)}; ids are distinct",
                field=f"{path}.id",
            )
        seen.add(name)
        tensor = left.pop(name, None)
        if tensor is not None:
            _give(sample, tensor, f"{path}.feedback")
    for name in left:
        raise Problem(
            Code.INVALID_REQUEST, f"the tensor {excerpt(name)} belongs to no sample of the request"
        )
    return request


def _give(sample: dict[str, Any], tensor: TensorValue, path: str) -> None:
    own = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
    stated = sample.get("feedback")
    if stated is None:
        sample["feedback"] = {**own, "data": tensor.data}
        return
    if not isinstance(stated, dict):
        return
    feedback = cast("dict[str, Any]", stated)
    if tensor.dtype == "uint8" and len(tensor.shape) == 1 and feedback.get("dtype") == "int8":
        own = {}  # bytes: what they are is the request's to say
    for key, value in own.items():
        if feedback.setdefault(key, value) != value:
            raise Problem(
                Code.INVALID_REQUEST,
                f"{path}.{key} is not that of the tensor of this name ({value})",
                field=f"{path}.{key}",
            )
    if feedback.get("data") is not None:
        raise Problem(
            Code.INVALID_REQUEST,
            f"{path}.data is given although the body holds a tensor of this name",
            field=f"{path}.data",
        )
    feedback["data"] = tensor.data


def _samples(request: object) -> Iterator[tuple[dict[str, Any], str]]:
    """The samples of a score, align or evaluate request, with their places."""
    yield from _entries(request, "samples", "")
    for group, path in _entries(request, "groups", ""):
        yield from _entries(group, "samples", f"{path}.")
    pairs = [*_entries(request, "pairs", ""), *_entries(request, "anchors", "")]
    for pair, path in pairs:
        for side in ("chosen", "rejected"):
            if isinstance(pair.get(side), dict):
                yield pair[side], f"{path}.{side}"


def _entries(value: object, key: str, path: str) -> Iterator[tuple[dict[str, Any], str]]:
    found: object = cast("dict[str, object]", value).get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        return
    for index, entry in enumerate(cast("list[object]", found)):
        if isinstance(entry, dict):
            yield cast("dict[str, Any]", entry), f"{path}{key}[{index}]"
