"""What is compared: the toy lab's arms, at the sizes of SmolLM2."""

from __future__ import annotations

from lab.arms import Arm

WIDTH = 256
STEPS, GROUPS_A_STEP = 60, 16
SHORTEST = 20
"""Aligns below which no head has gone anywhere."""

PAPER = Arm(
    name="paper",
    says="`paper`, learning rate 1e-6",
    method={
        "profile": "paper",
        "width": WIDTH,
        "omega": {"kind": "cosine", "total_steps": STEPS, "floor": 0.6},
    },
)
GUARDED = Arm(name="guarded", says="`guarded`", method={"profile": "guarded", "width": WIDTH})
LABELLED = Arm(
    name="labelled-25",
    says="`labelled`, 25 % of the groups",
    method={"profile": "labelled", "width": WIDTH},
    labelled=0.25,
)
BACKBONE = LABELLED.but("backbone-25", "- the reward model's own states", attended="backbone")
HEAD_ONLY = LABELLED.but("none-25", "- no states: the scoring head alone", attended="none")
ARMS = (
    PAPER,
    PAPER.but("paper-1e-4", "`paper`, 1e-4", method={"learning_rate": 1e-4}),
    GUARDED,
    GUARDED.but("guarded-25", "`guarded`, 25 % labelled", labelled=0.25),
    LABELLED.but("labelled-10", "`labelled`, 10 %", labelled=0.10),
    LABELLED,
    LABELLED.but("shuffled-25", "- another sample's states", attended="shuffled"),
    LABELLED.but("noise-25", "- Gaussian noise", attended="noise"),
    BACKBONE,
    HEAD_ONLY,
    LABELLED.but("labelled-50", "`labelled`, 50 %", labelled=0.50),
    LABELLED.but("labelled-100", "`labelled`, all of them", labelled=1.0),
    LABELLED.but("none-100", "- the scoring head alone", labelled=1.0, attended="none"),
    Arm(
        name="refit-25",
        says="the vanilla head fitted anew, the 25 % added to its data",
        reward="retrained",
        labelled=0.25,
    ),
)
SWEPT = tuple(
    arm.but(f"{arm.name}-lr{rate:g}", arm.says, method={"learning_rate": rate})
    for arm in (LABELLED, BACKBONE, HEAD_ONLY)
    for rate in (1e-5, 1e-4, 1e-3, 1e-2)
)
"""With labels, at rates around their own, 0.04/√(256·576) ≈ 1e-4: at that the bare head stays where
it was, and is no comparison for those that moved."""
QUESTIONS = (
    ("Do labels on all groups help?", "labelled-100", None),
    ("Does the paper's update help?", "paper-1e-4", None),
    ("Does `guarded` help, without labels?", "guarded", None),
    ("Do labels on 25 % of the groups help?", "labelled-25", None),
    ("- more than on the scoring head alone?", "labelled-25", "none-25"),
    ("- more than with another sample's states?", "labelled-25", "shuffled-25"),
    ("- more than with noise?", "labelled-25", "noise-25"),
    ("- more than with the reward model's own states?", "labelled-25", "backbone-25"),
    ("- more than fitting the vanilla head anew?", "labelled-25", "refit-25"),
)
"""(question, ours, theirs); None: the vanilla reward model."""
