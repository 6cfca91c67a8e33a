"""Messages of a run's controls."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from r2m_service.application.contract.base import Answer


class ControlTotal(Answer):
    """The live line of heads and a control, on every fresh pair that the line has learnt from."""

    pairs: int
    head_accuracy: float | None = None
    accuracy: float | None = Field(default=None, description="of the control")
    head_bt: float | None = Field(default=None, description="mean -log sigma(margin), of the head")
    bt: float | None = None
    discordant: float = Field(
        default=0.0, description="pairs that one alone has right; a tie counts a quarter"
    )
    difference: float | None = Field(default=None, description="of accuracies, head less control")
    low: float | None = Field(
        default=None, description="95 % interval of the difference, good at every look"
    )
    high: float | None = None


class ControlOut(Answer):
    """A shadow arm that learns the same labels from something else than the run's feedback."""

    control: Literal["shuffled", "backbone", "none"]
    verdict: Literal[
        "not_available",
        "too_few_pairs",
        "no_difference_yet",
        "feedback_pays",
        "control_is_better",
    ]
    pairs: int = Field(description="of this step, whose label neither had learnt from")
    accuracy: float | None = Field(default=None, description="on them, of the control")
    head_accuracy: float | None = Field(default=None, description="of the head before the update")
    moved: bool = Field(description="whether it learnt from this step")
    total: ControlTotal
    note: str = ""


class ControlsOut(Answer):
    """What a run's controls say (docs/algorithm.md, Controls)."""

    arms: list[ControlOut]
