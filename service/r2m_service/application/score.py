"""The use case `score`."""

from __future__ import annotations

from r2m.errors import Problem
from r2m_service.application.contract import (
    SampleIn,
    ScoreAnswer,
    ScoreOut,
    ScoreRequest,
    VanillaRequest,
)
from r2m_service.application.lookup import find_head, find_run, head_source
from r2m_service.application.ports import Blobs, Engine, HeadSource, Item, Registry
from r2m_service.application.samples import error_out, items_of, require_distinct
from r2m_service.domain.runs import Head, Run


async def score_run(
    registry: Registry, blobs: Blobs, engine: Engine, name: str, request: ScoreRequest
) -> ScoreAnswer:
    """Rewards by one version of a run; the version is resolved once for the whole call.

    Raises:
        Problem: unknown_run, unknown_head, unknown_alias, run_archived, backbone_mismatch,
            duplicate_id, head_damaged.
    """
    run, head = await scoring_head(registry, engine, name, request)
    return ScoreAnswer(
        run=name,
        head=head.number,
        branch=head.branch,
        omega=head.omega,
        fingerprint=engine.info.fingerprint,
        scores=await score_all(engine, run, head_source(blobs, run, head), request.samples),
    )


async def scoring_head(
    registry: Registry, engine: Engine, name: str, request: ScoreRequest
) -> tuple[Run, Head]:
    """The run and the version that a request means; a call or a stream asks once.

    Raises:
        Problem: unknown_run, unknown_head, unknown_alias, run_archived, backbone_mismatch.
    """
    state = await find_run(registry, name)
    state.run.require_open(engine.info.fingerprint)
    return state.run, await find_head(registry, state, request.head)


async def score_vanilla(engine: Engine, request: VanillaRequest) -> ScoreAnswer:
    """The frozen reward model's own rewards.

    Raises:
        Problem: duplicate_id.
    """
    return ScoreAnswer(
        fingerprint=engine.info.fingerprint,
        scores=await score_all(engine, None, None, request.samples),
    )


async def score_all(
    engine: Engine, run: Run | None, head: HeadSource | None, samples: list[SampleIn]
) -> list[ScoreOut]:
    """Rewards or errors of samples, in their order; what fails as a whole raises.

    Raises:
        Problem: duplicate_id, head_damaged, not_ready.
    """
    ids = ((one.id, f"samples[{place}].id") for place, one in enumerate(samples))
    require_distinct(ids, what="samples")
    checked = await items_of(engine, run, samples)
    good = [item for item in checked if isinstance(item, Item)]
    scored = iter(await engine.score(head, good))
    answers: list[ScoreOut] = []
    for sample, item in zip(samples, checked, strict=True):
        result = item if isinstance(item, Problem) else next(scored)
        if isinstance(result, Problem):
            answers.append(ScoreOut(id=sample.id, error=error_out(result)))
        else:
            answers.append(
                ScoreOut(id=sample.id, reward=result.reward, vanilla_reward=result.vanilla_reward)
            )
    return answers
