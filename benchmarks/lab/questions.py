"""What is asked: differences of two arms on the same seeds."""

from __future__ import annotations

from collections.abc import Iterable

from bench.report import Table
from lab.outcomes import KL_LEVELS, Outcomes
from lab.stats import Mean, TooFewError, mean_of, paired

Question = tuple[str, str, str]
"""Words; the name of an arm, and of the one that is taken from it."""

QUESTIONS: tuple[Question, ...] = (
    ("Noise: the same arm with other samples", "frozen-again", "frozen"),
    ("- and where a head learns", "labelled-25-again", "labelled-25"),
    ("- its gain over frozen, run again", "labelled-25-again", "frozen-again"),
    ("Does the paper's update hold the policy, at 1e-3?", "paper", "frozen"),
    ("- at 1e-4?", "paper-1e-4", "frozen"),
    ("- at 1e-5?", "paper-1e-5", "frozen"),
    ("- at its own 1e-6?", "paper-own", "frozen"),
    ("- and does it matter whose states it sees?", "paper", "paper-shuffled"),
    ("- and do the states help at all?", "paper", "paper-none"),
    ("Does `guarded` hold it, without labels?", "guarded", "frozen"),
    ("A policy KL instead", "frozen-kl", "frozen"),
    ("- a weaker one", "frozen-kl0.03", "frozen"),
    ("- a stronger one", "frozen-kl0.3", "frozen"),
    ("- the paper's update over that", "paper", "frozen-kl"),
    ("- `guarded` over that", "guarded", "frozen-kl"),
    ("Do labels on 25 % of the groups hold it?", "labelled-25", "frozen"),
    ("- on 5 %?", "labelled-5", "frozen"),
    ("- on 10 %?", "labelled-10", "frozen"),
    ("- on 50 %?", "labelled-50", "frozen"),
    ("- with `guarded` around them?", "guarded-25", "frozen"),
    ("Labels over a policy KL without any: 25 %", "labelled-25", "frozen-kl"),
    ("- 10 %", "labelled-10", "frozen-kl"),
    ("- 5 %", "labelled-5", "frozen-kl"),
    ("Both over the KL alone", "labelled-25-kl", "frozen-kl"),
    ("Both over the labels alone", "labelled-25-kl", "labelled-25"),
    ("Policy's states over another sample's", "labelled-25", "shuffled-25"),
    ("- run again", "labelled-25-again", "shuffled-25-again"),
    ("Policy's states over those of the policy as it began", "labelled-25", "start-25"),
    ("Policy's states over noise", "labelled-25", "noise-25"),
    ("Policy's states over none (head alone)", "labelled-25", "none-25"),
    ("- run again", "labelled-25-again", "none-25-again"),
    ("- with advantages scaled", "labelled-25-scaled", "none-25-scaled"),
    ("Labels with advantages scaled", "labelled-25-scaled", "frozen-scaled"),
    ("Policy's states over the reward model's own", "labelled-25", "backbone-25"),
    ("- run again", "labelled-25-again", "backbone-25-again"),
    ("- at 5 %", "labelled-5", "backbone-5"),
    ("- at 10 %", "labelled-10", "backbone-10"),
    ("- at 50 %", "labelled-50", "backbone-50"),
    ("The reward model's own over none", "backbone-25", "none-25"),
    ("- run again", "backbone-25-again", "none-25-again"),
    ("- over those of another sample", "backbone-25", "strange-25"),
    ("Retraining the whole reward model over `labelled`", "retrained-25", "labelled-25"),
    ("The labels given to the policy over `labelled`: 25 %", "labels-25", "labelled-25"),
    ("- 10 %", "labels-10", "labelled-10"),
    ("- 5 %", "labels-5", "labelled-5"),
    ("- 25 %, three of ten swapped", "labels-25-wrong", "labelled-25-wrong"),
    ("- 25 %, 40 steps late", "labels-25-late", "labelled-25-late"),
    ("- over retraining", "labels-25", "retrained-25"),
    ("- over both at once", "labels-25-scaled", "labelled-25-paid"),
    ("Both at once over `labelled` alone", "labelled-25-paid", "labelled-25-scaled"),
    ("Labels learnt from again over learning from each once", "labelled-25", "labelled-25-once"),
    ("- and once over the frozen reward model", "labelled-25-once", "frozen"),
    ("Labels of which three in ten are swapped", "labelled-25-wrong", "frozen"),
    ("Labels by a coin", "labelled-25-random", "frozen"),
    ("Labels that come 40 steps late", "labelled-25-late", "frozen"),
)
WEAK_QUESTIONS: tuple[Question, ...] = (
    ("Do labels on 25 % hold it?", "weak-labelled-25", "weak-frozen"),
    ("A policy KL instead", "weak-frozen-kl", "weak-frozen"),
    ("Labels over that", "weak-labelled-25", "weak-frozen-kl"),
    ("Both over the KL alone", "weak-labelled-25-kl", "weak-frozen-kl"),
    ("- with the reward model's own states", "weak-backbone-25-kl", "weak-frozen-kl"),
    ("- with none", "weak-none-25-kl", "weak-frozen-kl"),
    (
        "- the policy's states over the reward model's own",
        "weak-labelled-25-kl",
        "weak-backbone-25-kl",
    ),
    ("- the policy's states over none", "weak-labelled-25-kl", "weak-none-25-kl"),
    ("Policy's states over another sample's", "weak-labelled-25", "weak-shuffled-25"),
    ("Policy's states over those of the policy as it began", "weak-labelled-25", "weak-start-25"),
    ("Policy's states over none", "weak-labelled-25", "weak-none-25"),
    ("Policy's states over the reward model's own", "weak-labelled-25", "weak-backbone-25"),
    ("Retraining over `labelled`", "weak-retrained-25", "weak-labelled-25"),
    ("The labels given to the policy over `labelled`", "weak-labels-25", "weak-labelled-25"),
)
TUNED_QUESTIONS: tuple[Question, ...] = (
    ("Policy's states over another sample's", "labelled-25-tuned", "shuffled-25-tuned"),
    ("Policy's states over none (head alone)", "labelled-25-tuned", "none-25-tuned"),
    ("Policy's states over the reward model's own", "labelled-25-tuned", "backbone-25-tuned"),
    ("The reward model's own over none", "backbone-25-tuned", "none-25-tuned"),
    ("Retraining over `labelled`", "retrained-25-tuned", "labelled-25-tuned"),
    ("Retraining over the reward model's own", "retrained-25-tuned", "backbone-25-tuned"),
    ("The labels given to the policy over `labelled`", "labels-25", "labelled-25-tuned"),
    ("- over retraining", "labels-25", "retrained-25-tuned"),
)


def questions_table(
    found: Outcomes,
    questions: Iterable[tuple[str, str, str]] = QUESTIONS,
    *,
    name: str = "questions",
    title: str = "Questions: differences of two arms on the same seeds",
) -> Table:
    """Paired differences, each with what it says."""
    table = Table(
        name, title, ["question", "final gold", "says", f"gold at KL {KL_LEVELS[1]:g}", "says"]
    )
    for question, ours, theirs in questions:
        if ours not in found or theirs not in found:
            continue
        final = difference(found, ours, theirs)
        level = difference_at(found, ours, theirs, KL_LEVELS[1])
        table.rows.append(
            [
                f"{question} (`{ours}` − `{theirs}`)",
                final.shown() if final else None,
                final.says if final else "too few seeds",
                _of(level, final) if level else None,
                level.says if level else "too few seeds",
            ]
        )
    table.notes.append(
        "Difference of the two arms seed by seed, mean ± half a 95 % interval. `open`: the "
        "interval holds zero, so these seeds cannot tell. In brackets how many seeds have both, "
        "if not all: an arm that never goes that far is not there. Nothing is corrected for the "
        "number of questions: of twenty, one may be called better or worse by chance."
    )
    return table


def _of(level: Mean, final: Mean | None) -> str:
    """With how many seeds got there, where not all did."""
    all_did = final is not None and final.count == level.count
    return level.shown() if all_did else f"{level.shown()} ({level.count})"


def difference(found: Outcomes, ours: str, theirs: str) -> Mean | None:
    """Final gold, ours less theirs, on the seeds that both have; None: too few."""
    seeds = sorted(found[ours].keys() & found[theirs].keys())
    try:
        return paired(
            [found[ours][seed].final for seed in seeds],
            [found[theirs][seed].final for seed in seeds],
        )
    except TooFewError:
        return None


def difference_at(found: Outcomes, ours: str, theirs: str, level: float) -> Mean | None:
    """The same where each policy first was that far from its start."""
    differences = [
        a - b
        for seed in sorted(found[ours].keys() & found[theirs].keys())
        if (a := found[ours][seed].at_kl[level]) is not None
        and (b := found[theirs][seed].at_kl[level]) is not None
    ]
    try:
        return mean_of(differences)
    except TooFewError:
        return None
