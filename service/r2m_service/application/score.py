"""The use case `score`."""

from __future__ import annotations

from collections.abc import Sequence

from r2m.errors import Problem
from r2m_service.application.contract import (
    SampleIn,
    ScoreAnswer,
    ScoreOut,
    ScoreRequest,
    VanillaRequest,
)
from r2m_service.application.lookup import find_run, head_source, scoring_head
from r2m_service.application.ports import Blobs, Engine, HeadSource, Item, Registry, Scored
from r2m_service.application.samples import error_out, items_of, require_distinct
from r2m_service.application.usage import Usage
from r2m_service.domain.runs import Run


async def score_run(
    registry: Registry,
    blobs: Blobs,
    engine: Engine,
    usage: Usage,
    name: str,
    request: ScoreRequest,
) -> ScoreAnswer:
    """Rewards by one version of a run; the version is resolved once for the whole call.

    Raises:
        Problem: unknown_run, unknown_head, unknown_alias, unknown_branch, step_out_of_order,
            run_archived, backbone_mismatch, duplicate_id, head_damaged, head_pruned.
    """
    run, source, opened = await resolved(registry, blobs, engine, name, request)
    scores = await score_samples(engine, usage, run, source, request.samples)
    return opened.model_copy(update={"scores": scores})


async def resolved(
    registry: Registry, blobs: Blobs, engine: Engine, name: str, request: ScoreRequest
) -> tuple[Run, HeadSource, ScoreAnswer]:
    """The run and the version that a request means, and the answer so far; asked once a call.

    Raises:
        Problem: as `score_run`, all but those of samples.
    """
    state = await find_run(registry, name)
    state.run.require_open(engine.info.fingerprint)
    head, branch = await scoring_head(
        registry, state, head=request.head, step=request.step, branch=request.branch
    )
    opened = ScoreAnswer(
        run=name,
        head=head.number,
        branch=branch,
        omega=head.omega,
        fingerprint=engine.info.fingerprint,
        scores=[],
    )
    return state.run, head_source(registry, blobs, state.run, head), opened


async def score_vanilla(engine: Engine, usage: Usage, request: VanillaRequest) -> ScoreAnswer:
    """The frozen reward model's own rewards.

    Raises:
        Problem: duplicate_id.
    """
    return ScoreAnswer(
        fingerprint=engine.info.fingerprint,
        scores=await score_samples(engine, usage, None, None, request.samples),
    )


async def score_samples(
    engine: Engine,
    usage: Usage,
    run: Run | None,
    head: HeadSource | None,
    samples: Sequence[SampleIn],
) -> list[ScoreOut]:
    """Each sample's rewards or its error, in order.

    Raises:
        Problem: duplicate_id, head_damaged, head_pruned, not_ready.
    """
    ids = ((one.id, f"samples[{place}].id") for place, one in enumerate(samples))
    require_distinct(ids, what="samples")
    checked = await items_of(engine, run, samples)
    good = [item for item in checked if isinstance(item, Item)]
    scored = iter(await engine.score(head, good))
    results = [one if isinstance(one, Problem) else next(scored) for one in checked]
    if run is not None:
        usage.scored(run.name, checked, results)
    return [
        _score_out(sample, item, result)
        for sample, item, result in zip(samples, checked, results, strict=True)
    ]


def _score_out(sample: SampleIn, item: Item | Problem, result: Scored | Problem) -> ScoreOut:
    if isinstance(item, Problem) or isinstance(result, Problem):
        problem = item if isinstance(item, Problem) else result
        assert isinstance(problem, Problem)
        return ScoreOut(id=sample.id, error=error_out(problem), finish_reason=sample.finish_reason)
    return ScoreOut(
        id=sample.id,
        reward=result.reward,
        vanilla_reward=result.vanilla_reward,
        tokens=len(item.token_ids),
        states=item.feedback.shape[0] if item.feedback else None,
        truncated=item.truncated or None,
        finish_reason=sample.finish_reason,
    )
