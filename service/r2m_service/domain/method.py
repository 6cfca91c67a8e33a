"""The method settings of a run: profiles, defaults, and the checks that a number must pass.

The dataclasses are validated from a client's JSON by the application (pydantic reads
`__pydantic_config__`); a ValueError raised here becomes an `invalid_request` naming the key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, cast

Profile = Literal["paper", "guarded", "labelled"]
Labels = Literal["pseudo", "outside_first", "outside_only"]
OmegaKind = Literal["cosine", "constant", "ramp"]
ControlKind = Literal["shuffled", "backbone", "none"]
"""What a shadow arm attends to in place of the run's feedback: another sample's states, the reward
model's own, nothing."""

_T = TypeVar("_T")

PAPER_WIDTH = 2048
NUMBERS = (
    "width",
    "alpha",
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "kl_weight",
    "replay_groups",
    "audit_rate",
    "judge_share",
    "seed",
)
CHANGEABLE = frozenset(
    {
        "alpha",
        "learning_rate",
        "weight_decay",
        "max_grad_norm",
        "kl_weight",
        "labels",
        "replay_groups",
        "audit_rate",
        "freeze_on_alarm",
        "gate",
    }
)
"""Keys that may change in a run's life. ω's schedule may not: heads carry what it gave them. Nor
may `judge_share` and `seed`: which labels train and which judge is decided for good."""
MAX_WIDTH = 65536
MAX_REPLAY = 4096
LARGEST = 1000.0
"""Of rates and weights: far beyond sense, and far from where float32 overflows by itself."""
NO_DRIFT = {"spread_min": None, "spread_max": None, "rank_correlation_min": None}
_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Omega:
    """ω, the weight of the reward token embedding in the fused reward (eq. 4).

    Kinds: `cosine` (total_steps = T, floor = Ω), `constant` (value = Ω), `ramp` (steps, floor):
    a straight line from 1 to the floor.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    kind: OmegaKind
    value: float | None = None
    total_steps: int | None = None
    steps: int | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
        takes = {
            "cosine": {"total_steps", "floor"},
            "constant": {"value"},
            "ramp": {"steps", "floor"},
        }[self.kind]
        for key in ("value", "total_steps", "steps", "floor"):
            given = getattr(self, key)
            if key in takes and given is None:
                raise ValueError(f"omega of kind {self.kind} needs `{key}`")
            if key not in takes and given is not None:
                raise ValueError(f"omega of kind {self.kind} takes no `{key}`")
        for key in ("value", "floor"):
            given = getattr(self, key)
            if given is not None and not 0 <= given <= 1:
                raise ValueError(f"omega's `{key}` is between 0 and 1, got {given}")
        for key in ("total_steps", "steps"):
            given = getattr(self, key)
            if given is not None and not 1 <= given < 2**31:
                raise ValueError(f"omega's `{key}` is between 1 and 2**31 - 1")

    def at(self, t: int) -> float:
        """ω(t) after eq. 4, for t = 1, 2, …; version 0 carries ω(1)."""
        if self.kind == "constant":
            return _given(self.value)
        floor = _given(self.floor)
        if self.kind == "cosine":
            # Past T the cosine would climb again; the schedule is over, so it stays at its floor.
            phase = min(t / _given(self.total_steps), 1.0)
            return max(0.5 * math.cos(math.pi * phase) + 0.5, floor)
        return max(1.0 - (1.0 - floor) * t / _given(self.steps), floor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a candidate must pass to become live. Finiteness is always asked for.

    Attributes:
        spread_min, spread_max, rank_correlation_min: bounds of drift; None switches one off.
        anchors_every: steps from one look at the anchor set to the next; None: anchors never judge.
        anchors_margin: accuracy that a candidate may be worse by, as a share: 0.02 is two points.
        anchors_alpha: chance that any look of the whole run accepts one that is worse by more.
        anchors_looks: looks that are planned for; later ones ask for more evidence.
        undecided: whether live moves where anchors give too little evidence: `hold` or `move`.
        freeze_after: rejections in a row after which the run freezes; None: never.
        reference: who moves the alias `reference`: `fixed`: an admin alone; `anchors`: also a
            candidate that the anchors prove better than it.
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    spread_min: float | None = 0.5
    spread_max: float | None = 2.0
    rank_correlation_min: float | None = 0.8
    anchors_every: int | None = 10
    anchors_margin: float = 0.02
    anchors_alpha: float = 0.05
    anchors_looks: int = 20
    undecided: Literal["hold", "move"] = "hold"
    freeze_after: int | None = 5
    reference: Literal["fixed", "anchors"] = "fixed"

    def __post_init__(self) -> None:
        for key in ("anchors_every", "freeze_after", "anchors_looks"):
            given = getattr(self, key)
            if given is not None and not 1 <= given < 2**31:
                raise ValueError(f"gate.{key} is between 1 and 2**31 - 1, got {given}")
        for key in ("anchors_margin", "anchors_alpha"):
            given = getattr(self, key)
            if not 0 < given < 0.5:
                raise ValueError(f"gate.{key} is above 0 and below 0.5, got {given}")
        for key in ("spread_min", "spread_max"):
            given = getattr(self, key)
            if given is not None and not (0 < given < math.inf):
                raise ValueError(f"gate.{key} is a positive number or null, got {given}")
        if (
            self.spread_min is not None
            and self.spread_max is not None
            and self.spread_min >= self.spread_max
        ):
            raise ValueError("gate.spread_min is below gate.spread_max")
        rho = self.rank_correlation_min
        if rho is not None and not -1 <= rho <= 1:
            raise ValueError(f"gate.rank_correlation_min is between -1 and 1, got {rho}")

    @property
    def checks_drift(self) -> bool:
        """Whether anything beyond finiteness is asked for."""
        return any(
            bound is not None
            for bound in (self.spread_min, self.spread_max, self.rank_correlation_min)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSettings:
    """All settings of a run's method, resolved: nothing is left to a default of a later version.

    Attributes:
        profile: where the defaults came from.
        width: d, the inner width of the cross attention (paper: 2048, one head).
        alpha: weight of GRE against BT (eq. 7).
        learning_rate, weight_decay, max_grad_norm: AdamW; max_grad_norm null = no clipping.
        omega: the schedule of ω.
        kl_weight: weight of KL(p_ref ‖ p) per group; 0 = off.
        labels: `pseudo` (the group's own best and worst, as in the paper), `outside_first` (an
            outside label where a group has one, pseudo otherwise) or `outside_only`.
        gate: what a candidate must pass.
        replay_groups: newest groups with outside labels that every align learns from again.
        audit_rate: share of the groups that score marks for outside labels.
        judge_share: share of the marked groups whose labels judge and never train.
        freeze_on_alarm: whether an alarm of the audited gap freezes the run.
        seed: of the cross attention's initialisation, and of what is marked.
        controls: shadow arms that learn beside the live head (domain.controls).
    """

    __pydantic_config__: ClassVar[Any] = _STRICT

    profile: Profile
    width: int
    alpha: float
    learning_rate: float
    weight_decay: float
    max_grad_norm: float | None
    omega: Omega
    kl_weight: float
    labels: Labels
    gate: Gate = field(default_factory=Gate)
    replay_groups: int = 64
    audit_rate: float = 0.0
    judge_share: float = 0.5
    freeze_on_alarm: bool = False
    seed: int = 0
    # A list, so that settings read from JSON and settings given are equal.
    controls: list[ControlKind] = field(default_factory=list[ControlKind])

    def __post_init__(self) -> None:
        if not 1 <= self.width <= MAX_WIDTH:
            raise ValueError(f"width is between 1 and {MAX_WIDTH}, got {self.width}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is between 0 and 1, got {self.alpha}")
        if not 0 < self.learning_rate <= LARGEST:
            raise ValueError(
                f"learning_rate is above 0 and at most {LARGEST:g}, got {self.learning_rate}"
            )
        for key in ("weight_decay", "kl_weight"):
            given = getattr(self, key)
            if not 0 <= given <= LARGEST:
                raise ValueError(f"{key} is between 0 and {LARGEST:g}, got {given}")
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf:
            raise ValueError(
                f"max_grad_norm is a positive number, or null to switch clipping off, "
                f"got {self.max_grad_norm}"
            )
        if not 0 <= self.replay_groups <= MAX_REPLAY:
            raise ValueError(
                f"replay_groups is between 0 and {MAX_REPLAY}, got {self.replay_groups}"
            )
        for key in ("audit_rate", "judge_share"):
            given = getattr(self, key)
            if not 0 <= given <= 1:
                raise ValueError(f"{key} is between 0 and 1, got {given}")
        if not 0 <= self.seed < 2**53:  # a protobuf Struct carries it as a double
            raise ValueError(f"seed is between 0 and 2**53 - 1, got {self.seed}")
        if len(set(self.controls)) < len(self.controls):
            raise ValueError(f"controls names each once, got {', '.join(self.controls)}")


def check_numbers(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse values in disguise: Python counts true as 1, pydantic reads "8" as 8, "yes" as true.

    Raises:
        ValueError: naming the key.
    """
    for key in NUMBERS:
        value = given.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{key} is a number")
    for name, words in (("omega", {"kind"}), ("gate", {"undecided", "reference"})):
        inner: object = given.get(name)
        numbers = cast("Mapping[str, object]", inner) if isinstance(inner, Mapping) else {}
        for key, value in numbers.items():
            if key not in words and isinstance(value, bool | str):
                raise ValueError(f"{name}.{key[:40]} is a number")
    if not isinstance(given.get("freeze_on_alarm", False), bool):
        raise ValueError("freeze_on_alarm is true or false")
    if not isinstance(given.get("controls", []), list):
        raise ValueError('controls is a list of "shuffled", "backbone" and "none"')
    return given


def with_defaults(given: Mapping[str, Any], *, state_width: int, attends: bool) -> dict[str, Any]:
    """A client's `method` completed from its profile.

    Args:
        given: the client's keys, unchecked.
        state_width: width of the states attended to (D_p, or D_rm where there are none of the
            policy's): the guarded learning rate depends on it.
        attends: False for `feedback: none`, whose reward has no fused part: ω is 1.

    Raises:
        ValueError: for an unknown profile, or the paper's profile without its T.
    """
    check_numbers(given)
    profile = given.get("profile", "guarded")
    width = given.get("width", PAPER_WIDTH)
    if profile == "paper":
        defaults: dict[str, Any] = {
            "alpha": 0.3,
            "learning_rate": 1e-6,
            # The paper names AdamW and no decay; this is AdamW's own default.
            "weight_decay": 0.01,
            "max_grad_norm": None,
            "kl_weight": 0.0,
            "labels": "pseudo",
            "gate": {**NO_DRIFT, "anchors_every": None, "freeze_after": None},
            "replay_groups": 0,
        }
        if attends and "omega" not in given:
            raise ValueError(
                "profile paper needs its number of rounds T: give "
                '`"omega": {"kind": "cosine", "total_steps": T, "floor": 0.6}`'
            )
    elif profile in ("guarded", "labelled"):
        guarded = profile == "guarded"
        sized = isinstance(width, int | float) and 0 < width <= MAX_WIDTH
        defaults = {
            "alpha": 0.3,
            # Adam's movement of u grows with sqrt(D_p d): one number for all sizes.
            "learning_rate": 0.04 / math.sqrt(state_width * width) if sized else 1e-4,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "omega": {"kind": "constant", "value": 0.6},
            # What outside labels teach is a move away from the reference: nothing pulls it back,
            # and only anchors can tell whether it was a good one.
            "kl_weight": 1.0 if guarded else 0.0,
            "labels": "outside_first" if guarded else "outside_only",
            "gate": {} if guarded else NO_DRIFT,
            "replay_groups": 64,
        }
    else:
        raise ValueError("profile is paper, guarded or labelled")
    if not attends:
        if "omega" in given:
            raise ValueError("a run with feedback none has no attention: it takes no omega")
        defaults["omega"] = {"kind": "constant", "value": 1.0}
    gate = given.get("gate")
    if isinstance(gate, Mapping):
        given = {**given, "gate": {**defaults["gate"], **gate}}
    rest: dict[str, Any] = {
        "audit_rate": 0.0,
        "judge_share": 0.5,
        "freeze_on_alarm": False,
        "seed": 0,
        "controls": [],
    }
    return {**defaults, "width": width, **rest, **given, "profile": profile}


def _given(value: _T | None) -> _T:
    assert value is not None  # __post_init__ saw to it
    return value
