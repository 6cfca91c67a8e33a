"""What is compared with what: each arm is one way to reward the policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lab.training import Kind

Attended = Literal["policy", "shuffled", "start", "backbone", "backbone-shuffled", "noise", "none"]
"""What the head attends to: the policy's states, another sample's, those of the policy as it began,
the reward model's own, those of another sample, Gaussian noise of the same size, nothing
(`feedback: none`, the paper's iterative head)."""

Reward = Literal["proxy", "learner", "retrained", "labels"]
"""Who rewards: the frozen reward model, an R2M head, the reward model trained on; or nobody, and
the policy gets the labels themselves: 1 for the best of a labelled group, -1 for its worst, else 0.
"""

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
        wrong: share of the labels whose two sides are swapped.
        late: steps that a label takes to arrive.
        scaled: advantages are divided by their group's spread, as in GRPO.
        paid: a labelled group's reward is its label, as with `labels`; others keep theirs.
        retrain_rate: learning rate of `retrained`.
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
    wrong: float = 0.0
    late: int = 0
    scaled: bool = False
    paid: bool = False
    retrain_rate: float = 1e-4

    def __post_init__(self) -> None:
        if self.late and self.reward == "retrained":
            raise ValueError("labels of a retrained reward model are never late")

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
    says="- the whole reward model retrained at every step",
    reward="retrained",
    labelled=0.25,
)
DIRECT = Arm(
    name="labels-25",
    says="- no reward: the labels given to the policy itself",
    reward="labels",
    labelled=0.25,
)

CORE = (FROZEN, PAPER, GUARDED, LABELLED, SHUFFLED, BACKBONE, HEAD_ONLY, RETRAINED, DIRECT)
"""What the claims rest on: `make lab` by itself, and published on more seeds than the rest."""

MORE = (
    FROZEN.but("frozen-kl", "frozen, policy KL 0.1", policy_kl=0.1),
    PAPER.but("paper-own", "`paper`, its own learning rate 1e-6", method={"learning_rate": 1e-6}),
    PAPER.but("paper-shuffled", "- 1e-3, another sample's states", attended="shuffled"),
    PAPER.but("paper-none", "- 1e-3, the scoring head alone", attended="none"),
    GUARDED.but("guarded-25", "`guarded`, 25 % of the groups labelled", labelled=0.25),
    LABELLED.but("labelled-5", "`labelled`, 5 %", labelled=0.05),
    BACKBONE.but("backbone-5", "- the reward model's own states", labelled=0.05),
    DIRECT.but("labels-5", DIRECT.says, labelled=0.05),
    LABELLED.but("labelled-10", "`labelled`, 10 %", labelled=0.10),
    BACKBONE.but("backbone-10", "- the reward model's own states", labelled=0.10),
    DIRECT.but("labels-10", DIRECT.says, labelled=0.10),
    LABELLED.but("labelled-25-kl", "`labelled`, 25 %, policy KL 0.1", policy_kl=0.1),
    LABELLED.but("labelled-50", "`labelled`, 50 %", labelled=0.50),
    BACKBONE.but("backbone-50", "- the reward model's own states", labelled=0.50),
    LABELLED.but("noise-25", "- Gaussian noise for states", attended="noise"),
    LABELLED.but("start-25", "- states of the policy as it began", attended="start"),
    LABELLED.but(
        "strange-25", "- the reward model's own, of another sample", attended="backbone-shuffled"
    ),
)
"""The rest of the main table."""

DOUBTS = (
    FROZEN.but("frozen-again", "frozen, run again with other samples", draws=1),
    FROZEN.but("frozen-kl0.03", "frozen, policy KL 0.03", policy_kl=0.03),
    FROZEN.but("frozen-kl0.3", "frozen, policy KL 0.3", policy_kl=0.3),
    FROZEN.but("frozen-scaled", "frozen, advantages scaled by their group's spread", scaled=True),
    PAPER.but("paper-1e-5", "`paper`, learning rate 1e-5", method={"learning_rate": 1e-5}),
    PAPER.but("paper-1e-4", "`paper`, learning rate 1e-4", method={"learning_rate": 1e-4}),
    LABELLED.but("labelled-25-again", "`labelled`, 25 %, run again with other samples", draws=1),
    SHUFFLED.but("shuffled-25-again", "- another sample's states", draws=1),
    BACKBONE.but("backbone-25-again", "- the reward model's own states", draws=1),
    HEAD_ONLY.but("none-25-again", "- no states: the scoring head alone", draws=1),
    LABELLED.but("labelled-25-scaled", "`labelled`, 25 %, advantages scaled", scaled=True),
    HEAD_ONLY.but("none-25-scaled", "- no states, advantages scaled", scaled=True),
    LABELLED.but(
        "labelled-25-paid",
        "- advantages scaled, labels given to the policy, too",
        scaled=True,
        paid=True,
    ),
    LABELLED.but(
        "labelled-25-once",
        "`labelled`, 25 %, each label learnt from once",
        method={"replay_groups": 0},
    ),
    DIRECT.but("labels-25-scaled", DIRECT.says + ", advantages scaled", scaled=True),
    LABELLED.but("labelled-25-wrong", "`labelled`, 25 %, three labels of ten swapped", wrong=0.3),
    DIRECT.but("labels-25-wrong", DIRECT.says + ", three of ten swapped", wrong=0.3),
    LABELLED.but("labelled-25-random", "`labelled`, 25 %, labels by a coin", wrong=0.5),
    LABELLED.but("labelled-25-late", "`labelled`, 25 %, labels 40 steps late", late=40),
    DIRECT.but("labels-25-late", DIRECT.says + ", 40 steps late", late=40),
)
"""What somebody who doubts a row of it would ask for next: runs again, other weights and scales,
labels that are wrong, late, by a coin or used once."""

WEAK = tuple(
    arm.but(f"weak-{arm.name}", arm.says, start="weak")
    for arm in (
        *(FROZEN, LABELLED, SHUFFLED, BACKBONE, HEAD_ONLY, RETRAINED, DIRECT),
        LABELLED.but("start-25", "- states of the policy as it began", attended="start"),
        FROZEN.but("frozen-kl", "frozen, policy KL 0.1", policy_kl=0.1),
        LABELLED.but("labelled-25-kl", "`labelled`, 25 %, policy KL 0.1", policy_kl=0.1),
        BACKBONE.but("backbone-25-kl", "- the reward model's own states", policy_kl=0.1),
        HEAD_ONLY.but("none-25-kl", "- no states: the scoring head alone", policy_kl=0.1),
    )
)
"""A reward model whose backbone knows little: do the policy's states pay there?"""

GOOD = Arm(
    name="good", says="frozen reward model of 20,000 clean pairs", reward="proxy", start="good"
)
HEALTHY = (GOOD, GOOD.but("good-kl", "the same, policy KL 0.1", policy_kl=0.1))
"""Runs that should not alarm."""


def _sweep() -> Iterator[Arm]:
    for base in (LABELLED, BACKBONE):
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


SWEEPS = tuple(_sweep())
"""α (0: no GRE; 1: GRE alone), Ω, and the pull to the reference."""

_HEAD_RATES = (2e-4, 6.25e-4, 2e-3, 6e-3)
RATES: tuple[tuple[Arm, tuple[float, ...]], ...] = (
    *((arm, _HEAD_RATES) for arm in (LABELLED, SHUFFLED, BACKBONE, HEAD_ONLY)),
    (RETRAINED, (3e-5, 1e-4, 3e-4, 1e-3)),
)
"""Learning rates that each arm with labels is tried at; the second is its own."""


def at_rate(base: Arm, rate: float, name: str, says: str) -> Arm:
    """An arm of `RATES` at another learning rate."""
    if base.reward == "retrained":
        return base.but(name, says, retrain_rate=rate)
    return base.but(name, says, method={"learning_rate": rate})


TUNING = tuple(
    at_rate(base, rate, f"{base.name}-lr{rate:g}", f"{base.name}, lr {rate:g}")
    for base, rates in RATES
    for rate in rates
)
"""Each arm with labels at four learning rates, on seeds that no other table has."""

SETS: dict[str, tuple[Arm, ...]] = {
    "core": CORE,
    "more": MORE,
    "doubts": DOUBTS,
    "weak": WEAK,
    "healthy": HEALTHY,
    "sweeps": SWEEPS,
    "tuning": TUNING,
}
