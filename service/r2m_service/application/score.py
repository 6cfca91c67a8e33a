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
from r2m_service.domain.runs import Run


async def score_run(
    registry: Registry, blobs: Blobs, engine: Engine, name: str, request: ScoreRequest
) -> ScoreAnswer:
    """Rewards by one version of a run; the version is resolved once for the whole call.

    Raises:
        Problem: unknown_run, unknown_head, unknown_alias, run_archived, backbone_mismatch,
            duplicate_id, head_damaged.
    """
    state = await find_run(registry, name)
    state.run.require_open(engine.info.fingerprint)
    head = await find_head(registry, state, request.head)
    return ScoreAnswer(
        run=name,
        head=head.number,
        # What the trainer goes on with: after a rollback, the live head was made on another one.
        branch=state.current if head.number == state.branch(None).live else head.branch,
        omega=head.omega,
        fingerprint=engine.info.fingerprint,
        scores=await _scores(
            engine, state.run, head_source(blobs, state.run, head), request.samples
        ),
    )


async def score_vanilla(engine: Engine, request: VanillaRequest) -> ScoreAnswer:
    """The frozen reward model's own rewards.

    Raises:
        Problem: duplicate_id.
    """
    return ScoreAnswer(
        fingerprint=engine.info.fingerprint,
        scores=await _scores(engine, None, None, request.samples),
    )


async def _scores(
    engine: Engine, run: Run | None, head: HeadSource | None, samples: list[SampleIn]
) -> list[ScoreOut]:
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
