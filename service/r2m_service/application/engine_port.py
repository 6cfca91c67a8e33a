"""What the application needs of the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from r2m.errors import Problem
from r2m_service.application.align_job import AlignJob, Ask, GroupResult, Update
from r2m_service.application.scoring_items import (
    AnyText,
    Encoded,
    HeadSource,
    Item,
    Queried,
    Scored,
    Vector,
)
from r2m_service.domain.method import MethodSettings
from r2m_service.domain.runs import FeedbackSource, TextRules


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """What the engine holds."""

    model: str
    fingerprint: str
    hidden_size: int
    max_length: int
    dtype: str
    device: str
    deterministic: bool
    chat_template: bool
    template_date: str | None = None


class Engine(Protocol):
    """The device: backbone, attention, head arithmetic."""

    @property
    def info(self) -> BackboneInfo:
        """What it holds."""
        ...

    async def encode(
        self, texts: Sequence[AnyText], *, rules: TextRules
    ) -> list[Encoded | Problem]:
        """Token ids, or why a text has none (text_empty, text_invalid, text_too_long, …)."""
        ...

    async def score(
        self, head: HeadSource | None, items: Sequence[Item]
    ) -> list[Scored | Queried | Problem]:
        """Rewards by one version, or vanilla ones for None. One answer an item, in order.

        An item whose states stay with the trainer, and of which it has told nothing, is `Queried`.
        """
        ...

    async def direction(self, head: HeadSource) -> Vector:
        """v = W_v W_o w of a version that attends: what its rewards read c in."""
        ...

    async def align(
        self, job: AlignJob, progress: Callable[[GroupResult], None], ask: Ask
    ) -> Update:
        """One update; yields the device between groups.

        Args:
            progress: hears of each group that is done.
            ask: what the candidate makes of hidden states that stay with the trainer.
        """
        ...

    def first_head(
        self, *, policy_width: int, feedback: FeedbackSource, method: MethodSettings
    ) -> bytes:
        """Version 0 as safetensors: W_o = 0, φ = the frozen RM's own head, ω(1)."""
        ...
