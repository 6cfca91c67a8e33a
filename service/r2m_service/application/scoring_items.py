"""What the engine scores: texts, samples, heads; and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from r2m.tensors import TensorValue
from r2m_service.domain.runs import FeedbackSource

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and a response, formatted by the backbone's chat template or just joined.

    Attributes:
        special: whether the tokenizer adds its special tokens to a text that is just joined.
        cut: the side to cut of such a text where the rules of run or server name none.
    """

    prompt: str
    response: str
    raw: bool = False
    special: bool = True
    cut: Literal["left", "right"] | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns as the chat template takes them, and the tools it may name."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] | None = None


AnyText = Text | Conversation | TokenIds
"""What a sample may be; token ids are the reward model's own, taken as they are."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and how many more there were before they were cut."""

    token_ids: TokenIds
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class HeadKey:
    """Names a version across runs, for caches: the hash of its weights and its ω."""

    sha256: str
    omega: float


@dataclass(frozen=True, slots=True)
class HeadSource:
    """A version that the engine can load when it does not hold it.

    Attributes:
        run: whose it is; runs share the device alike.
        read: gives the safetensors bytes; called in a worker thread.
        keeps_states: whether a control of the run will ask for the backbone's token states.
    """

    run: str
    key: HeadKey
    feedback: FeedbackSource
    read: Callable[[], bytes]
    keeps_states: bool = False


Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """What a trainer computed from hidden states that stay with it (method.md, section 7).

    Attributes:
        id: what it knows the states by.
        states: how many there are.
        head: the version whose u and v it computed with; None: it has not yet.
        fused: v·c.
        pooled: c and j of shape (2, D_p); j is taken along v, so that ∂r/∂u = (1 − ω) j.
        reference: v·c under the reference head, where align asked for it.
    """

    id: str
    states: int
    head: int | None = None
    fused: float | None = None
    pooled: npt.NDArray[np.float32] | None = None
    reference: float | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One sample, checked and tokenized.

    Attributes:
        feedback: the policy's states; None where the run takes none or they stay with the trainer.
        split: what came in their place.
    """

    token_ids: TokenIds
    feedback: TensorValue | None
    truncated: int = 0
    split: Split | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What a reward was made of, for the journal; each of width D_rm or D_p, float32.

    Attributes:
        rte: H_last; u: the absorbed query; c, j: the pooled states (method.md, section 7). Those
            of the attention are None for a head without one, j also at score.
        fused: v·c as the trainer told it, at score, in place of c.
    """

    rte: Vector
    u: Vector | None = None
    c: Vector | None = None
    j: Vector | None = None
    fused: float | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """Rewards of one sample: the head's, and the frozen RM's own."""

    reward: float
    vanilla_reward: float
    device_seconds: float = field(default=0.0, compare=False)
    trace: Trace | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Queried:
    """What the trainer needs before a sample has a reward: u, its absorbed query."""

    u: Vector
