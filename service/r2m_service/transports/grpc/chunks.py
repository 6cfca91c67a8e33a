"""Chunks of tensors, read from a stream's message without the copies that decoding makes.

A message of protobuf is field numbers, lengths and bytes; decoded by the library, a megabyte of
data is copied twice before anybody can look at it. Only the form that every library writes is read
here (the oneof's chunk alone, its id, then its data); whatever else may be valid is decoded.
"""

from __future__ import annotations

from r2m.v1 import r2m_pb2 as pb

_ID = pb.Chunk.DESCRIPTOR.fields_by_name["id"].number << 3 | 2
_DATA = pb.Chunk.DESCRIPTOR.fields_by_name["data"].number << 3 | 2


def chunk_of(raw: bytes, field: int) -> tuple[str, memoryview] | None:
    """Id and data of a message that is a chunk in the usual form; None for any other.

    Args:
        raw: the message.
        field: the number of its field `chunk`, below 16.
    """
    view = memoryview(raw)
    chunk = _part(view, 0, field << 3 | 2)
    if chunk is None or chunk[1] != len(raw):
        return None
    start, end = chunk
    name = _part(view, start, _ID)
    data = None if name is None else _part(view, name[1], _DATA)
    if name is None or data is None or data[1] != end:
        return None
    try:
        return str(view[name[0] : name[1]], "utf-8"), view[data[0] : data[1]]
    except UnicodeDecodeError:
        return None


def _part(view: memoryview, at: int, tag: int) -> tuple[int, int] | None:
    """Where a field's bytes lie that stands at `at`: (start, end)."""
    if at >= len(view) or view[at] != tag:
        return None
    size = shift = 0
    for start in range(at + 1, min(at + 6, len(view))):
        size |= (view[start] & 0x7F) << shift
        shift += 7
        if view[start] < 0x80:
            end = start + 1 + size
            return (start + 1, end) if end <= len(view) else None
    return None
