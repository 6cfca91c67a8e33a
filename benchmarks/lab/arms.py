"""What is compared with what: each arm is one way to reward the policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lab.training import Kind

Attended = Literal["policy", "shuffled", "backbone", "noise", "none"]
"""What the head attends to: the policy's states, another sample's, the reward model's own, Gaussian
noise of the same size, nothing (`feedback: none`, the paper's iterative head)."""

Reward = Literal["proxy", "gold", "learner", "retrained"]
"""Who rewards: the frozen reward model, the truth, an R2M head, or the reward model trained on."""

WIDTH = 64
"""d of all heads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm.

    Attributes:
        name: of its files and its row.
        says: for people.
        method: keys of the run, as a user gives them; `profile` among them.
        labelled: share of the groups whose best and worst are known from outside.
        policy_kl: weight of the policy's KL to where it began, in its reward.
        start: which reward model it begins with (`training.RECIPES`).
        draws: another number, other queries and samples from the same start: a rerun.
    """

    name: str
    says: str
    reward: Reward = "learner"
    attended: Attended = "policy"
    method: Mapping[str, Any] = field(default_factory=dict[str, Any])
    labelled: float = 0.0
    policy_kl: float = 0.0
    start: Kind = "usual"
    draws: int = 0

    def but(self, name: str, says: str, **changes: Any) -> Arm:
        """The same with some keys changed; `method` is merged."""
        method = {**self.method, **changes.pop("method", {})}
        return replace(self, name=name, says=says, method=method, **changes)


FROZEN = Arm(name="frozen", says="frozen reward model", reward="proxy")
PAPER = Arm(
    name="paper",
    says="`paper`, learning rate 1e-3",
    method={
        "profile": "paper",
        "width": WIDTH,
        "learning_rate": 1e-3,
        "omega": {"kind": "cosine", "total_steps": 240, "floor": 0.6},
    },
)
GUARDED = Arm(name="guarded", says="`guarded`", method={"profile": "guarded", "width": WIDTH})
LABELLED = Arm(
    name="labelled-25",
    says="`labelled`, 25 % of the groups",
    method={"profile": "labelled", "width": WIDTH},
    labelled=0.25,
)
SHUFFLED = LABELLED.but("shuffled-25", "- another sample's states", attended="shuffled")
BACKBONE = LABELLED.but("backbone-25", "- the reward model's own states", attended="backbone")
HEAD_ONLY = LABELLED.but("none-25", "- no states: the scoring head alone", attended="none")
RETRAINED = Arm(
    name="retrained-25",
    says="- the whole reward model retrained (ceiling)",
    reward="retrained",
    labelled=0.25,
)

CORE = (FROZEN, PAPER, GUARDED, LABELLED, SHUFFLED, BACKBONE, HEAD_ONLY, RETRAINED)
"""What `make lab` runs by itself."""

MORE = (
    FROZEN.but("frozen-again", "frozen, run again with other samples", draws=1),
    FROZEN.but("frozen-kl", "frozen, policy KL 0.1", policy_kl=0.1),
    PAPER.but("paper-own", "`paper`, its own learning rate 1e-6", method={"learning_rate": 1e-6}),
    PAPER.but("paper-shuffled", "- another sample's states", attended="shuffled"),
    PAPER.but("paper-none", "- the scoring head alone", attended="none"),
    GUARDED.but("guarded-25", "`guarded`, 25 % of the groups labelled", labelled=0.25),
    LABELLED.but("labelled-5", "`labelled`, 5 %", labelled=0.05),
    BACKBONE.but("backbone-5", "- the reward model's own states", labelled=0.05),
    LABELLED.but("labelled-10", "`labelled`, 10 %", labelled=0.10),
    BACKBONE.but("backbone-10", "- the reward model's own states", labelled=0.10),
    LABELLED.but("labelled-50", "`labelled`, 50 %", labelled=0.50),
    BACKBONE.but("backbone-50", "- the reward model's own states", labelled=0.50),
    LABELLED.but("noise-25", "`labelled`, 25 %, Gaussian noise for states", attended="noise"),
)
"""The rest of the main table."""

WEAK = tuple(
    arm.but(f"weak-{arm.name}", arm.says, start="weak")
    for arm in (FROZEN, LABELLED, SHUFFLED, BACKBONE, HEAD_ONLY, RETRAINED)
)
"""A reward model whose backbone knows little: do the policy's states pay there?"""

HEALTHY = (
    Arm(
        name="good", says="frozen reward model of 20,000 clean pairs", reward="proxy", start="good"
    ),
    Arm(name="gold", says="the gold itself", reward="gold"),
)
"""Runs that should not alarm."""


def _sweep() -> Iterator[Arm]:
    for base in (LABELLED, BACKBONE):
        for rate in (1e-4, 3e-4, 1e-3, 3e-3):
            yield base.but(
                f"{base.name}-lr{rate:g}",
                f"{base.name}, lr {rate:g}",
                method={"learning_rate": rate},
            )
        for omega in (0.1, 0.3, 0.9):
            yield base.but(
                f"{base.name}-omega{omega:g}",
                f"{base.name}, Ω {omega:g}",
                method={"omega": {"kind": "constant", "value": omega}},
            )
    for alpha in (0.0, 1.0):
        yield GUARDED.but(
            f"guarded-alpha{alpha:g}", f"guarded, α {alpha:g}", method={"alpha": alpha}
        )
        yield PAPER.but(f"paper-alpha{alpha:g}", f"paper, α {alpha:g}", method={"alpha": alpha})
    for weight in (0.1, 10.0):
        yield GUARDED.but(
            f"guarded-kl{weight:g}", f"guarded, KL weight {weight:g}", method={"kl_weight": weight}
        )
    for rate in (1e-5, 1e-4):
        yield PAPER.but(f"paper-lr{rate:g}", f"paper, lr {rate:g}", method={"learning_rate": rate})


SWEEPS = tuple(_sweep())
"""α (0: no GRE; 1: GRE alone), Ω, the learning rate, and the pull to the reference."""

SETS: dict[str, tuple[Arm, ...]] = {
    "core": CORE,
    "more": MORE,
    "weak": WEAK,
    "healthy": HEALTHY,
    "sweeps": SWEEPS,
}
