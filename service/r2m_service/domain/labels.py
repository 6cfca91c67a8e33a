"""Outside labels: what is kept of a sample until its label comes, and the pairs labels make.

A label is a grade of one sample, or a preference between two of one group. Whether it trains or
judges follows from its prompt alone (`domain.audit.use_of`), so that no prompt is ever on both
sides, whatever its samples are called and whenever they come.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from r2m_service.domain.runs import BlobRef

Use = Literal["train", "judge"]


@dataclass(frozen=True, slots=True)
class KeptSample:
    """A scored sample that is marked for a label.

    Attributes:
        id: the client's; distinct within the run.
        group: the query it answers, as the client named it; its id where it named none.
        prompt: hash of the prompt, by which it trains or judges.
        content: hash of its text, so that the same sample scored again is known.
        head, branch, reward, vanilla_reward: of the score that marked it.
        text: the sample as it was sent, without its hidden states.
        feedback: what its hidden states are: {"dtype", "shape"}; None where none were kept.
        file: their bytes.
    """

    id: str
    group: str
    use: Use
    prompt: str
    content: str
    head: int
    branch: str
    reward: float
    vanilla_reward: float
    text: Mapping[str, Any]
    at: datetime
    feedback: Mapping[str, Any] | None = None
    file: BlobRef | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """What somebody outside said: a grade of `sample`, or that it is better than `loser`."""

    sample: str
    grade: float | None
    loser: str | None
    source: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two samples of one group, of which somebody outside preferred the first."""

    winner: KeptSample
    loser: KeptSample


def pairs_of(samples: Sequence[KeptSample], labels: Iterable[Label]) -> list[LabelledPair]:
    """What labels teach, oldest first: one pair a group.

    A stated preference counts before grades; of several, the latest. Grades give the group's best
    against its worst, where they differ.
    """
    known = {sample.id: sample for sample in samples}
    stated: dict[str, LabelledPair] = {}
    graded: defaultdict[str, list[tuple[float, KeptSample]]] = defaultdict(list)
    order: dict[str, None] = {}
    for label in labels:
        sample = known.get(label.sample)
        if sample is None:
            continue
        order.setdefault(sample.group)
        if label.grade is not None:
            graded[sample.group].append((label.grade, sample))
        elif label.loser is not None and label.loser in known:
            stated[sample.group] = LabelledPair(sample, known[label.loser])
    found: list[LabelledPair] = []
    for group in order:
        if group in stated:
            found.append(stated[group])
            continue
        grades = sorted(graded[group], key=lambda one: one[0])
        if len(grades) > 1 and grades[0][0] < grades[-1][0]:
            found.append(LabelledPair(grades[-1][1], grades[0][1]))
    return found
