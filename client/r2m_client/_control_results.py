"""What a run's controls say, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ControlTotal:
    """The live line of heads and a control, on every fresh pair that the line has learnt from.

    Attributes:
        head_accuracy, accuracy: shares of the pairs that the head and the control had right before
            learning from them.
        head_bt, bt: mean −log σ(margin) of each.
        discordant: pairs that one alone has right; a tie counts a quarter.
        difference: of accuracies, head less control; low and high: its 95 % interval, good at every
            look.
    """

    pairs: int
    head_accuracy: float | None = None
    accuracy: float | None = None
    head_bt: float | None = None
    bt: float | None = None
    discordant: float = 0.0
    difference: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """A shadow arm that learns the same labels from something else than the run's feedback.

    Attributes:
        control: shuffled, backbone or none.
        verdict: not_available, too_few_pairs, no_difference_yet, feedback_pays or
            control_is_better.
        pairs: of this step, whose label neither had learnt from.
        accuracy, head_accuracy: on them.
        moved: whether it learnt from this step.
        note: what is missing, or nothing.
    """

    control: str
    verdict: str
    pairs: int
    moved: bool
    total: ControlTotal
    accuracy: float | None = None
    head_accuracy: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Controls:
    """All controls of a run."""

    arms: tuple[Control, ...] = ()
