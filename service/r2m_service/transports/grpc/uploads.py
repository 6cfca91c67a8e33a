"""Tensors on streams: chunks put where they belong, in buffers of the stated sizes."""

from __future__ import annotations

from collections.abc import Iterator

from r2m.errors import Code, Problem
from r2m.tensors import ITEM_BYTES, MAX_DIMENSION, Bytes, wire_bytes
from r2m_service.application.contract import AlignRequest, FeedbackIn, SampleIn
from r2m_service.application.parsing import excerpt
from r2m_service.transports.buffers import BufferPool

MAX_CHUNK_BYTES = 1 << 20


class Tensor:
    """One sample's bytes, as far as they came.

    Args:
        feedback: dtype and shape of what is to come.
        buffers: where its memory is from.

    Attributes:
        size: as dtype and shape state it; None where they state nothing that could be.
        filled: bytes so far.
    """

    def __init__(self, feedback: FeedbackIn, buffers: BufferPool) -> None:
        self.feedback = feedback
        self._buffers = buffers
        self.size = _stated_bytes(feedback)
        self.filled = 0
        self._buffer: memoryview | None = None

    def add(self, name: str, data: Bytes) -> None:
        """Put a chunk behind the ones before it.

        Raises:
            Problem: invalid_request, where it is more than the stated size.
        """
        if self.size is None:  # its dtype or shape is this sample's error: the bytes are of no use
            return
        end = self.filled + len(data)
        if end > self.size:
            raise Problem(
                Code.INVALID_REQUEST,
                f"more bytes came for sample {excerpt(name)} than its dtype and shape take, "
                f"{self.size}",
            )
        if self._buffer is None:  # not earlier: what never comes takes no memory
            self._buffer = self._buffers.take(self.size)
        self._buffer[self.filled : end] = data
        self.filled = end

    def finish(self) -> None:
        """Give the feedback the bytes that came."""
        # Fewer bytes than stated are this sample's feedback_size, which the use case finds.
        # The memory goes back when the last who reads it is done: nothing else may hold it.
        whole, self._buffer = self._buffer, None
        self.feedback.data = memoryview(b"") if whole is None else whole[: self.filled]


class Upload:
    """What a stream's first message announces.

    Args:
        request: the message, whose feedback has dtype and shape but no data.
        buffers: where the memory is from.

    Raises:
        Problem: duplicate_id, or invalid_request for data in the first message.
    """

    def __init__(self, request: AlignRequest, buffers: BufferPool) -> None:
        self._tensors: dict[str, Tensor | None] = {}
        for path, sample in _samples(request):
            if sample.id in self._tensors:
                raise Problem(
                    Code.DUPLICATE_ID,
                    f"two samples have the id {excerpt(sample.id)}; ids are distinct",
                    field=f"{path}.id",
                )
            if sample.feedback is not None and sample.feedback.data:
                raise Problem(
                    Code.INVALID_REQUEST,
                    f"{path}.feedback.data must be empty: on a stream it comes in chunks",
                    field=f"{path}.feedback.data",
                )
            self._tensors[sample.id] = Tensor(sample.feedback, buffers) if sample.feedback else None

    @property
    def size(self) -> int:
        """Bytes of all tensors together."""
        return sum(one.size or 0 for one in self._tensors.values() if one is not None)

    def add(self, name: str, data: Bytes) -> None:
        """Take a chunk.

        Raises:
            Problem: invalid_request, for a sample that announced none, a chunk beyond its bound,
                or more bytes than announced.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            known = (
                "announced no hidden states" if name in self._tensors else "is not in the request"
            )
            raise Problem(
                Code.INVALID_REQUEST, f"a chunk came for sample {excerpt(name)}, which {known}"
            )
        if len(data) > MAX_CHUNK_BYTES:
            raise Problem(
                Code.INVALID_REQUEST,
                f"a chunk may have {MAX_CHUNK_BYTES} bytes, got {len(data)}",
            )
        tensor.add(name, data)

    def finish(self) -> None:
        """Give every feedback of the request the bytes that came for it."""
        for tensor in self._tensors.values():
            if tensor is not None:
                tensor.finish()


def _samples(request: AlignRequest) -> Iterator[tuple[str, SampleIn]]:
    """Every sample whose bytes may come, with its place."""
    for i, group in enumerate(request.groups):
        for j, sample in enumerate(group.samples):
            yield f"groups[{i}].samples[{j}]", sample
    for i, pair in enumerate(request.anchors):
        yield f"anchors[{i}].chosen", pair.chosen
        yield f"anchors[{i}].rejected", pair.rejected


def _stated_bytes(feedback: FeedbackIn) -> int | None:
    if feedback.dtype not in ITEM_BYTES or len(feedback.shape) != 2:
        return None
    if not all(0 < size < MAX_DIMENSION for size in feedback.shape):
        return None
    return wire_bytes(feedback.dtype, feedback.shape)
