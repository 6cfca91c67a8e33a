"""Client bytes become torch tensors: no copy where the buffer allows it, nothing executed."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from functools import cache

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


AHEAD_BYTES = 256 << 20
"""Of states that are copied to a GPU before they are needed, at most."""

States = Tensor | Quantized


def states_tensor(value: TensorValue, device: torch.device) -> Tensor:
    """h_SP of a checked value, on a device."""
    flat = torch.frombuffer(value.data, dtype=DTYPES[value.dtype])
    if flat.dtype is torch.float32 and flat.data_ptr() % ALIGNMENT:
        # Where a request's bytes lie is chance, and BLAS promises the same bits only for the same
        # alignment. 16-bit numbers need no such copy: BLAS sees the float32 copies of their chunks.
        flat = flat.clone()
    # From page-locked memory the copy goes on by itself; from other memory this waits for it.
    return flat.reshape(value.shape).to(device, non_blocking=True)


def quantized_states(value: TensorValue, device: torch.device) -> Quantized:
    """States in 8 bits and their scales, of a checked value, on a device."""
    tokens, width = value.shape
    first = int8.scale_bytes(value.shape)
    # Few, and copied: they may lie at any address.
    scales = torch.frombuffer(bytearray(memoryview(value.data)[:first]), dtype=torch.float32)
    q_SP = torch.frombuffer(value.data, dtype=torch.int8, offset=first).reshape(tokens, width)
    channel_P, token_S = scales.to(device).split([width, tokens])
    return Quantized(q_SP.to(device, non_blocking=True), token_S, channel_P)


def on_device(value: TensorValue, device: torch.device) -> States:
    """The states of a checked value, whatever they are stored in."""
    return (quantized_states if value.dtype == "int8" else states_tensor)(value, device)


class Uploads:
    """A batch's hidden states on their way to the device, while it computes something else.

    On a GPU they are copied on a stream of their own, ahead of need up to `AHEAD_BYTES`; elsewhere
    nothing is done before `take`. Whoever owns the values keeps them until a result is there.

    Args:
        values: by the sample's place; None where it has none.
        ahead_bytes: copied before they are taken, at most.
    """

    def __init__(
        self,
        values: Sequence[TensorValue | None],
        device: torch.device,
        *,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        self._values = values
        self._device = device
        self._room = ahead_bytes
        self._started: dict[int, tuple[States, torch.cuda.Event]] = {}
        self._waiting = deque(place for place, value in enumerate(values) if value is not None)
        if device.type != "cuda":
            self._waiting.clear()
        self._start_some()

    def take(self, place: int) -> States | None:
        """The states of the sample at a place, for the stream that computes; once."""
        value = self._values[place]
        if value is None:
            return None
        if place not in self._started:
            return on_device(value, self._device)
        states, copied = self._started.pop(place)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(copied)
        for tensor in _tensors(states):
            # Its memory belongs to the copying stream, which must not use it again too early.
            tensor.record_stream(computing)
        self._room += len(value.data)
        self._start_some()
        return states

    def _start_some(self) -> None:
        while self._waiting:
            value = self._values[self._waiting[0]]
            assert value is not None
            if len(value.data) > self._room:
                return
            self._room -= len(value.data)
            stream = _copy_stream(self._device)
            with torch.cuda.stream(stream):
                states, copied = on_device(value, self._device), torch.cuda.Event()
            copied.record(stream)
            self._started[self._waiting.popleft()] = states, copied


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _tensors(states: States) -> tuple[Tensor, ...]:
    if isinstance(states, Quantized):
        return states.q_SP, states.token_S, states.channel_P
    return (states,)


def pinned(size: int) -> npt.NDArray[np.uint8]:
    """New page-locked memory: what a GPU copies from without a detour, and aligned."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()


def not_finite(c_P: Tensor, states: States | None) -> Problem | None:
    """Why a sample's pooled states are no numbers; None where they are.

    A non-finite number anywhere in h makes c non-finite, so h is only searched when c is.

    Args:
        states: those that were pooled. 8-bit ones are finite by their form (their scales are
            checked as they arrive).
    """
    if bool(torch.isfinite(c_P).all()):
        return None
    bad = torch.nonzero(~torch.isfinite(states)) if isinstance(states, Tensor) else []
    if isinstance(states, Tensor) and len(bad):
        token, place = (int(n) for n in bad[0])
        return Problem(
            Code.FEEDBACK_NOT_FINITE,
            f"{len(bad)} of {states.numel()} numbers are NaN or infinite, first at token {token}, "
            f"place {place}; finite numbers are needed",
            field="feedback.data",
        )
    return Problem(
        Code.REWARD_NOT_FINITE, "the attention over these hidden states overflows float32"
    )
