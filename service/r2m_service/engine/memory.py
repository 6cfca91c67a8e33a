"""Whether an error says that memory ran out, on whichever device."""

from __future__ import annotations

import torch


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """A GPU's own error, Python's, or the plain RuntimeError that torch's CPU allocator raises."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "DefaultCPUAllocator" in str(error)
