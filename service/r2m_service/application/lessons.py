"""What one align learns from and is judged by, beside the groups that it was sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from r2m.errors import Code, Problem
from r2m_service.application.align_job import AlignGroup, AnchorItems
from r2m_service.application.anchors import Anchors
from r2m_service.application.contract import AlignRequest, GroupIn, SampleError
from r2m_service.application.label_port import LabelStore
from r2m_service.application.replay import Replay
from r2m_service.application.samples import prompt_hash
from r2m_service.domain.audit import use_of
from r2m_service.domain.runs import Run, RunState


@dataclass(frozen=True, slots=True)
class Lesson:
    """Beside the step's groups.

    Attributes:
        withheld: places of groups whose outside label is not learnt from: their prompt judges.
        trained: hashes of the prompts whose outside labels are.
        replay: labelled pairs to learn from again.
        anchors: pairs that judge the candidate, by id.
        due: whether anchors have to judge it.
        errors: of anchor pairs that cannot.
    """

    withheld: frozenset[int] = frozenset()
    trained: frozenset[str] = frozenset()
    replay: Sequence[AlignGroup] = ()
    anchors: dict[str, AnchorItems] = field(default_factory=dict[str, AnchorItems])
    due: bool = False
    errors: Sequence[SampleError] = ()


class Lessons:
    """Makes a step's lesson: keeps what judges apart from what trains."""

    def __init__(self, labels: LabelStore, anchors: Anchors, replay: Replay) -> None:
        self._labels = labels
        self._anchors = anchors
        self._replay = replay

    async def of(self, state: RunState, request: AlignRequest) -> Lesson:
        """The lesson of a step.

        Raises:
            Problem: no_anchors, head_damaged (the anchors' file), storage_failed.
        """
        run = state.run
        if request.anchors and state.anchors is None:
            raise Problem(
                Code.NO_ANCHORS,
                f"run {run.name!r} has no anchor set that these hidden states could belong to",
                field="anchors",
            )
        judging = await self._anchors.prompts(state)
        withheld, trained = set[int](), set[str]()
        for place, group in enumerate(request.groups):
            if not group.preferred or not group.samples:
                continue
            prompt = await asyncio.to_thread(prompt_hash, group.samples[0])
            if prompt in judging or _judges(run, prompt):
                withheld.add(place)
            else:
                trained.add(prompt)
        lesson = Lesson(
            withheld=frozenset(withheld),
            trained=frozenset(trained),
            replay=await self._replay.groups(run, judging),
        )
        every = run.method.gate.anchors_every
        due = state.anchors is not None and every is not None and request.step % every == 0
        if state.anchors is None or not (due or request.anchors):
            return lesson
        anchors, errors = await self._anchors.items(state, request.anchors)
        return replace(lesson, anchors=anchors, errors=errors, due=due)


def _judges(run: Run, prompt: str) -> bool:
    """Whether labels of a prompt judge: decided by its hash, where the run is audited at all."""
    method = run.method
    return method.audit_rate > 0 and use_of(method.seed, prompt, method.judge_share) == "judge"


def unlabelled(group: GroupIn) -> GroupIn:
    """The group without its outside label."""
    return group.model_copy(update={"preferred": None})
