"""What a run's own controls would have said: shadow arms beside `labelled-25`, as the service has.

The arms of the main table each lead a policy of their own, which nobody can do who trains one. A
run's controls (docs/algorithm.md) learn beside the live head on *its* policy, and are asked every
new label before they learn from it. Whether they say the same is what this table is about.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import cast

from rich.console import Console

from bench.report import Table
from lab import jobs, training
from lab.arms import LABELLED, WEAK, Arm
from lab.learner import Aligned, Group, Learner, States
from lab.models import WIDTH
from lab.outcomes import Outcomes
from lab.processes import each, processes
from lab.rlhf import Batch, K, Preferred, Rlhf, settings_of
from lab.stats import TooFewError, mean_of
from r2m_service.domain import controls
from r2m_service.domain.controls import Comparison
from r2m_service.domain.method import ControlKind

ARMS = (LABELLED, next(arm for arm in WEAK if arm.name == "weak-labelled-25"))
KINDS: tuple[ControlKind, ...] = ("shuffled", "backbone", "none")
SEEDS = 6
VERDICTS = ("feedback_pays", "control_is_better")
OwnStates = Callable[[], States]


class Shadowed:
    """The live learner with its controls; for `Rlhf` it is the learner.

    Args:
        own: gives the reward model's own states of the batch at hand.
    """

    def __init__(self, live: Learner, shadows: Mapping[ControlKind, Learner], own: OwnStates):
        self.method, self.score = live.method, live.score
        self._live, self._shadows, self._own = live, shadows, own
        self.said = dict.fromkeys(shadows, Comparison())
        self.history: dict[ControlKind, list[Comparison]] = {kind: [] for kind in shadows}

    def align(self, groups: Sequence[Group]) -> Aligned:
        """Ask both of each new label, then let both learn."""
        own = self._own()
        used = [place for place, group in enumerate(groups) if group.preferred is not None]
        margins = [_margin(self._live, groups[place]) for place in used]
        for kind, shadow in self._shadows.items():
            theirs = [
                replace(groups[place], states=_states(kind, groups, used, at, own))
                for at, place in enumerate(used)
            ]
            for head, group in zip(margins, theirs, strict=True):
                self.said[kind] = self.said[kind].add(head, _margin(shadow, group))
            shadow.align(theirs)
            self.history[kind].append(self.said[kind])
        return self._live.align(groups)


def _states(
    kind: ControlKind, groups: Sequence[Group], used: Sequence[int], at: int, own: States
) -> States | None:
    place = used[at]
    if kind == "none":
        return None
    if kind == "backbone":
        return own[place * K : (place + 1) * K]
    if len(used) > 1:
        return groups[used[at - 1]].states
    states = groups[place].states
    assert states is not None
    return [*states[1:], states[0]]


def _margin(learner: Learner, group: Group) -> float:
    assert group.preferred is not None
    winner, loser = group.preferred
    r_K = learner.score(group.rte_KR, group.states)
    return float(r_K[winner] - r_K[loser])


class ShadowedRlhf(Rlhf):
    """A run of the lab whose live head has controls."""

    def __init__(self, arm: Arm, start: training.Start, seed: int) -> None:
        super().__init__(arm, start, seed)
        self._batch: Batch | None = None
        assert self._learner is not None
        self.shadowed = Shadowed(
            self._learner,
            {kind: _shadow(kind, arm, start, seed) for kind in KINDS},
            self._own_states,
        )
        self._learner = cast("Learner", self.shadowed)

    def _own_states(self) -> States:
        assert self._batch is not None
        return self._batch.own

    def _align(self, batch: Batch, preferred: Preferred) -> Aligned:
        self._batch = batch
        return super()._align(batch, preferred)


def _shadow(kind: ControlKind, arm: Arm, start: training.Start, seed: int) -> Learner:
    attended = "policy" if kind == "shuffled" else kind
    method = settings_of(replace(arm, attended=attended), seed)
    assert method is not None
    return Learner(
        method,
        weight_R=start.proxy.score.weight[0],
        bias=start.proxy.score.bias,
        width_P=WIDTH,
        attends=kind != "none",
    )


@dataclass(frozen=True, slots=True)
class Said:
    """A control at the end of a run.

    Attributes:
        first: the first verdict that is one; at: the labels behind it. None: there was none.
    """

    control: str
    verdict: str
    pairs: int
    difference: float
    low: float
    high: float
    first: str | None
    at: int | None


def said_by(arm: Arm, seed: int, steps: int, out: Path) -> list[Said]:
    """Of one run: read where it is kept, made where it is not."""
    path = _file(arm, seed, steps, out)
    if path.exists():
        try:
            return [Said(**one) for one in json.loads(path.read_text())]
        except (ValueError, TypeError) as error:
            raise jobs.damaged(path) from error
    start = jobs.start_of(jobs.Job(arm, seed, steps), out)
    rlhf = ShadowedRlhf(arm, start, seed)
    rlhf.run(steps)
    found: list[Said] = []
    for kind, sums in rlhf.shadowed.said.items():
        low, high = sums.interval or (-1.0, 1.0)
        told = next((one for one in rlhf.shadowed.history[kind] if one.verdict in VERDICTS), None)
        found.append(
            Said(
                control=kind,
                verdict=sums.verdict,
                pairs=sums.pairs,
                difference=sums.difference or 0.0,
                low=low,
                high=high,
                first=told.verdict if told else None,
                at=told.pairs if told else None,
            )
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps([asdict(one) for one in found]))
    scratch.replace(path)
    return found


def _file(arm: Arm, seed: int, steps: int, out: Path) -> Path:
    code = "".join(
        ast.dump(ast.parse(inspect.getsource(module)))
        for module in (sys.modules[__name__], controls)
    )
    of = jobs.Job(arm, seed, steps).file(out).name
    key = hashlib.sha256(f"{of} {code}".encode()).hexdigest()[:12]
    return out / "shadows" / f"{arm.name}-{seed}-{key}.json"


def table(
    seeds: Sequence[int],
    steps: int,
    out: Path,
    workers: int,
    found: Outcomes,
    say: Console | None = None,
) -> Table:
    """What the controls said, beside what the arms of the main table came to."""
    work = [(arm, seed) for seed in seeds for arm in ARMS]
    with processes(workers) as pool:
        calls = {f"{arm.name} {seed}": (arm, seed, steps, out) for arm, seed in work}
        said = each(pool, "runs with controls", said_by, calls, say)
    made = Table(
        "shadows",
        "Controls: what a labelled run's own shadow arms say, and what the arms come to",
        ["run", "control", "labels", "accuracy, head less control", "feedback pays",
         "no difference yet", "control is better", "first said at", "withdrawn",
         "final gold, arm less arm", "says", "same sign"],
    )  # fmt: skip
    for arm in ARMS:
        for place, kind in enumerate(KINDS):
            ours = {
                seed: one[place]
                for (whose, seed), one in zip(work, said, strict=True)
                if whose is arm
            }
            made.rows.append(
                [
                    arm.name,
                    f"`{kind}`",
                    *_cells(list(ours.values())),
                    *_gold(found, arm, kind, ours),
                ]
            )
    made.notes.append(
        f"{len(seeds)} seeds. Accuracy: on each new label, before either learnt from it. First "
        "said at: labels behind the first verdict, median over the runs that had one. Withdrawn: "
        "runs with a verdict once that does not stand at the end. Final gold: of policies that "
        "each trained by one of the two arms, from the tables above, which nobody has who trains "
        "one policy; same sign: seeds in which both differences have it."
    )
    return made


def _cells(ours: Sequence[Said]) -> list[str | float | None]:
    counts = Counter(one.verdict for one in ours)
    at = [one.at for one in ours if one.at is not None]
    mean = mean_of([100 * one.difference for one in ours])
    return [
        round(sum(one.pairs for one in ours) / len(ours)),
        f"{mean.shown(1)} points",
        counts["feedback_pays"],
        counts["no_difference_yet"] + counts["too_few_pairs"],
        counts["control_is_better"],
        round(median(at)) if at else None,
        sum(one.first is not None and one.first != one.verdict for one in ours),
    ]


def _gold(
    found: Outcomes, arm: Arm, kind: ControlKind, said: Mapping[int, Said]
) -> list[str | None]:
    other = arm.name.replace("labelled", kind)
    seeds = sorted(said.keys() & found.get(arm.name, {}).keys() & found.get(other, {}).keys())
    apart = {seed: found[arm.name][seed].final - found[other][seed].final for seed in seeds}
    try:
        mean = mean_of(list(apart.values()))
    except TooFewError:
        return [None, None, None]
    same = sum(apart[seed] * said[seed].difference > 0 for seed in seeds)
    return [mean.shown(), mean.says, f"{same}/{len(seeds)}"]
