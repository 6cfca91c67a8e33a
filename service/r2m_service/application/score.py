"""The use case `score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from r2m.errors import Code, Problem
from r2m_service.application.about import tell
from r2m_service.application.contract import (
    SampleIn,
    ScoreAnswer,
    ScoreOut,
    ScoreRequest,
    VanillaRequest,
)
from r2m_service.application.engine_port import Engine
from r2m_service.application.journaling import Journaling
from r2m_service.application.lookup import find_run, head_source, scoring_head
from r2m_service.application.marking import Marking, ScoredBy
from r2m_service.application.ports import (
    Blobs,
    Registry,
)
from r2m_service.application.samples import error_out, items_of, require_distinct, tell_texts
from r2m_service.application.scoring_items import HeadSource, Item, Queried, Scored
from r2m_service.application.timings import timings
from r2m_service.application.usage import NO_RUN, Usage, bytes_of
from r2m_service.domain.runs import Run, TextRules

MAX_QUERY_BYTES = 32 << 20
"""Of u in one answer: nobody reserved them when the request came, which is much smaller."""


@dataclass(frozen=True, slots=True)
class Version:
    """What scores.

    Attributes:
        marks: whether samples may be marked for outside labels: what a trainer is rewarded with,
            not what somebody asks an older version for.
    """

    name: ScoredBy
    source: HeadSource
    marks: bool


class Scoring:
    """Rewards by a version of a run, or by the frozen reward model.

    Args:
        usage: counters by run.
        marking: what is marked for outside labels.
        journaling: what is written down.
        texts: rules of texts that are scored without a run.
    """

    def __init__(
        self,
        registry: Registry,
        blobs: Blobs,
        engine: Engine,
        usage: Usage,
        marking: Marking,
        journaling: Journaling,
        texts: TextRules,
    ) -> None:
        self._texts = texts
        self._journaling = journaling
        self._registry = registry
        self._blobs = blobs
        self._engine = engine
        self._usage = usage
        self._marking = marking

    async def run(self, name: str, request: ScoreRequest) -> ScoreAnswer:
        """Rewards by one version of a run; the version is resolved once for the whole call.

        Raises:
            Problem: unknown_run, unknown_head, unknown_alias, unknown_branch, step_out_of_order,
                run_archived, backbone_mismatch, duplicate_id, head_damaged, head_pruned.
        """
        by, opened = await self.resolved(name, request)
        scores = await self.samples(by, request.samples)
        asks = any(one.u is not None for one in scores)
        v = await self.direction(by) if asks else None
        return opened.model_copy(update={"scores": scores, "v": v})

    async def direction(self, by: Version) -> bytes:
        """What states that stay with the trainer are multiplied by: v, D_p float32.

        Raises:
            Problem: head_damaged, head_pruned.
        """
        return (await self._engine.direction(by.source)).tobytes()

    async def vanilla(self, request: VanillaRequest) -> ScoreAnswer:
        """The frozen reward model's own rewards.

        Raises:
            Problem: duplicate_id.
        """
        return self.unnamed().model_copy(
            update={"scores": await self.samples(None, request.samples)}
        )

    def unnamed(self) -> ScoreAnswer:
        """The answer so far where no run is named."""
        return ScoreAnswer(fingerprint=self._engine.info.fingerprint, scores=[])

    async def resolved(self, name: str, request: ScoreRequest) -> tuple[Version, ScoreAnswer]:
        """The version that a request means, and the answer so far; asked once a call.

        Raises:
            Problem: as `run`, all but those of samples.
        """
        with timings().taking("registry.run"):
            state = await find_run(self._registry, name)
            state.run.require_open(self._engine.info)
            head, branch = await scoring_head(
                self._registry, state, head=request.head, step=request.step, branch=request.branch
            )
        tell(run=name, step=request.step, head=head.number, branch=branch)
        opened = ScoreAnswer(
            run=name,
            head=head.number,
            branch=branch,
            omega=head.omega,
            fingerprint=self._engine.info.fingerprint,
            scores=[],
            advice=state.audit.advice,
        )
        source = head_source(self._registry, self._blobs, state.run, head)
        marks = request.step is not None or head.number == state.branch(branch).live
        return Version(ScoredBy(state.run, head.number, branch), source, marks), opened

    async def samples(self, by: Version | None, samples: Sequence[SampleIn]) -> list[ScoreOut]:
        """Each sample's rewards or its error, in order; None: the frozen model's.

        Raises:
            Problem: duplicate_id, head_damaged, head_pruned, not_ready.
        """
        tell(samples=len(samples))
        tell_texts(samples)
        ids = ((one.id, f"samples[{place}].id") for place, one in enumerate(samples))
        require_distinct(ids, what="samples")
        run = by.name.run if by else None
        stale: set[str] = set()
        items = await items_of(self._engine, run, samples, rules=self._texts)
        checked = [_told_by(by, item, stale) for item in items]
        good = [item for item in checked if isinstance(item, Item)]
        if by is not None:
            _require_few_queries(by.name.run, good)
        scored = iter(await self._engine.score(by.source if by else None, good))
        results = [one if isinstance(one, Problem) else next(scored) for one in checked]
        tell(failed=sum(isinstance(one, Problem) for one in results) or None)
        marked = set[str]()
        self._usage.scored(by.name.run.name if by else NO_RUN, checked, results)
        if by is not None:
            await self._journal(by, samples, checked, results)
            if by.marks:
                marked = await self._marking.keep(by.name, samples, checked, results)
        return [
            _score_out(sample, item, result, by, audit=sample.id in marked, stale=stale)
            for sample, item, result in zip(samples, checked, results, strict=True)
        ]

    async def _journal(
        self,
        by: Version,
        samples: Sequence[SampleIn],
        items: Sequence[Item | Problem],
        results: Sequence[Scored | Queried | Problem],
    ) -> None:
        good = [
            (sample, item, result)
            for sample, item, result in zip(samples, items, results, strict=True)
            if isinstance(item, Item) and isinstance(result, Scored)
        ]
        await self._journaling.scored(
            by.name.run.name,
            by.name.branch,
            by.name.head,
            by.source,
            [sample for sample, _, _ in good],
            [item for _, item, _ in good],
            [result for _, _, result in good],
        )


def _require_few_queries(run: Run, items: Sequence[Item]) -> None:
    asked = sum(item.split is not None and item.split.fused is None for item in items)
    most = MAX_QUERY_BYTES // (4 * run.policy.hidden_size)
    if asked > most:
        raise Problem(
            Code.TOO_LARGE,
            f"the answer would bring u of {asked} samples; at D_p = {run.policy.hidden_size} a "
            f"call may ask for {most}: send fewer samples a call",
            field="samples",
        )


def _told_by(by: Version | None, item: Item | Problem, stale: set[str]) -> Item | Problem:
    """The item; of a number that another head's u and v went into, only that it is stale."""
    if isinstance(item, Problem) or item.split is None or by is None:
        return item
    split = item.split
    if split.pooled is not None:
        return Problem(
            Code.FEEDBACK_UNEXPECTED,
            "c and j are for align; at score v·c goes back, in feedback.split.fused",
            field="feedback.data",
        )
    if split.fused is None or split.head in (None, by.name.head):
        return item
    stale.add(split.id)
    return replace(item, split=replace(split, fused=None))


def _score_out(
    sample: SampleIn,
    item: Item | Problem,
    result: Scored | Queried | Problem,
    by: Version | None,
    *,
    audit: bool,
    stale: set[str],
) -> ScoreOut:
    if isinstance(item, Problem) or isinstance(result, Problem):
        problem = item if isinstance(item, Problem) else result
        assert isinstance(problem, Problem)
        return ScoreOut(id=sample.id, error=error_out(problem), finish_reason=sample.finish_reason)
    asks = isinstance(result, Queried)
    return ScoreOut(
        id=sample.id,
        reward=None if asks else result.reward,
        vanilla_reward=None if asks else result.vanilla_reward,
        error=error_out(_stale(item, by)) if by is not None and sample.id in stale else None,
        tokens=len(item.token_ids),
        states=_states(item),
        truncated=item.truncated or None,
        finish_reason=sample.finish_reason,
        audit=audit or None,
        u=result.u.tobytes() if asks else None,
        feedback_bytes=bytes_of(item, result),
    )


def _stale(item: Item, by: Version) -> Problem:
    assert item.split is not None
    return Problem(
        Code.STALE_CONTEXT,
        f"v·c was computed with u and v of head {item.split.head}, and head {by.name.head} scores: "
        "compute it with this answer's u and v",
        field="feedback.split.head",
    )


def _states(item: Item) -> int | None:
    if item.split is not None:
        return item.split.states
    return item.feedback.shape[0] if item.feedback else None
