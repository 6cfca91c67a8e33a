"""What happens, told as it happens: calls and batches. What stands is asked for (`watching`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from r2m_service.application.timings import Stage

Transport = Literal["http", "grpc"]

OK = "ok"
"""Code of a call that was answered."""

CANCELLED = "cancelled"
"""Code of a call whose client hung up."""


@dataclass(frozen=True, slots=True)
class Called:
    """A call, or one sample of a stream, that is over.

    Attributes:
        method: one of a closed set: the gRPC method's name in snake case, whatever the transport;
            `stream_sample` for a sample of a stream.
        code: `ok`, `cancelled`, or the error's.
        seconds: from its head to its answer; None for a stream, which lasts as its client likes.
        stages: seconds by stage.
    """

    transport: Transport
    method: str
    code: str
    seconds: float | None
    stages: Mapping[Stage, float] = field(default_factory=dict[Stage, float])


@dataclass(frozen=True, slots=True)
class Batched:
    """A batch of samples that the device has scored.

    Attributes:
        tokens: of the samples' texts, also of those that came from the cache.
        feedback_bytes: of their hidden states.
        backbone, head: seconds of the two stages.
    """

    samples: int
    tokens: int
    feedback_bytes: int
    backbone: float
    head: float


class Metrics(Protocol):
    """Hears of calls and batches. Called from the event loop and the device thread; never fails."""

    def called(self, call: Called) -> None:
        """A call is over."""
        ...

    def batched(self, batch: Batched) -> None:
        """A batch is done."""
        ...


class NoMetrics:
    """Where nobody listens."""

    def called(self, call: Called) -> None:
        """Nothing."""

    def batched(self, batch: Batched) -> None:
        """Nothing."""


NO_METRICS = NoMetrics()


@dataclass(frozen=True, slots=True)
class CacheUse:
    """A cache as it stands; hits and misses since the start."""

    hits: int
    misses: int
    bytes: int
    capacity: int


@dataclass(frozen=True, slots=True)
class EngineUse:
    """The device as it stands.

    Attributes:
        embeddings, heads: the two caches.
        text_tokens: that the backbone has read; `padding_tokens`: read for nothing beside them.
        memory: bytes of the device by `allocated`, `reserved`, `total`; empty on a CPU.
    """

    alive: bool
    embeddings: CacheUse
    heads: CacheUse
    text_tokens: int
    padding_tokens: int
    memory: Mapping[str, int]
