"""The use case `evaluate`: how often heads prefer what they should."""

from __future__ import annotations

from collections.abc import Sequence

from r2m.errors import Code, Problem
from r2m.statistics import sign_test, wilson
from r2m_service.application.contract import (
    AccuracyOut,
    EvaluateAnswer,
    EvaluateRequest,
    PairIn,
    SampleError,
)
from r2m_service.application.engine_port import Engine
from r2m_service.application.lookup import find_run, find_stored, head_source
from r2m_service.application.ports import (
    Blobs,
    Registry,
)
from r2m_service.application.samples import error_out, items_of, require_distinct
from r2m_service.application.scoring_items import Item, Scored
from r2m_service.domain.runs import Head

Margins = list[float]
"""Reward of the chosen less that of the rejected, by pair."""


async def evaluate(
    registry: Registry, blobs: Blobs, engine: Engine, name: str, request: EvaluateRequest
) -> EvaluateAnswer:
    """Accuracy of heads on preference pairs; every head is judged on the same pairs.

    A pair with a sample that cannot be scored is left out for all, and its error is answered.

    Raises:
        Problem: unknown_*, run_archived, backbone_mismatch, duplicate_id, head_damaged,
            head_pruned.
    """
    state = await find_run(registry, name)
    state.run.require_open(engine.info)
    heads: list[Head] = []
    for named in request.heads or ["live"]:
        found = await find_stored(registry, state, named)
        if found.number not in {head.number for head in heads}:
            heads.append(found)
    require_distinct(
        ((pair.id, f"pairs[{place}].id") for place, pair in enumerate(request.pairs)),
        what="pairs",
    )
    samples = [one for pair in request.pairs for one in (pair.chosen, pair.rejected)]
    checked = [_whole(one) for one in await items_of(engine, state.run, samples)]
    problems: dict[int, Problem] = {
        place: one for place, one in enumerate(checked) if isinstance(one, Problem)
    }
    good = {place: one for place, one in enumerate(checked) if isinstance(one, Item)}
    scored: list[dict[int, Scored]] = []
    for head in heads:
        source = head_source(registry, blobs, state.run, head)
        results = await engine.score(source, list(good.values()))
        rewards: dict[int, Scored] = {}
        for place, result in zip(good, results, strict=True):
            if isinstance(result, Scored):
                rewards[place] = result
            elif isinstance(result, Problem):
                problems.setdefault(place, result)
        scored.append(rewards)
    whole = [
        2 * pair
        for pair in range(len(request.pairs))
        if 2 * pair not in problems and 2 * pair + 1 not in problems
    ]
    margins = [[one[i].reward - one[i + 1].reward for i in whole] for one in scored]
    vanilla = [scored[0][i].vanilla_reward - scored[0][i + 1].vanilla_reward for i in whole]
    with_margins = bool(request.margins)
    return EvaluateAnswer(
        run=name,
        pairs=len(whole),
        heads=[
            _accuracy(
                margin,
                head=head.number,
                first=margins[0] if place else None,
                with_margins=with_margins,
            )
            for place, (head, margin) in enumerate(zip(heads, margins, strict=True))
        ],
        vanilla=_accuracy(vanilla, head=None, first=margins[0], with_margins=with_margins),
        errors=[_error(request.pairs, place, problem) for place, problem in problems.items()],
    )


def _whole(item: Item | Problem) -> Item | Problem:
    """The item, if its states are here: a trainer's numbers are of one head only."""
    if isinstance(item, Problem) or item.split is None:
        return item
    return Problem(
        Code.FEEDBACK_UNEXPECTED,
        "evaluate compares heads, and takes the hidden states themselves: not split",
        field="feedback.split",
    )


def _accuracy(
    margins: Margins, *, head: int | None, first: Margins | None, with_margins: bool
) -> AccuracyOut:
    correct = sum(margin > 0 for margin in margins)
    ties = sum(margin == 0 for margin in margins)
    low, high = wilson(correct + ties / 2, len(margins))
    answer = AccuracyOut(
        head=head,
        accuracy=(correct + ties / 2) / len(margins) if margins else 0.0,
        low=low,
        high=high,
        correct=correct,
        ties=ties,
        margins=margins if with_margins else None,
    )
    if first is None:
        return answer
    better = sum(a > 0 >= b for a, b in zip(margins, first, strict=True))
    worse = sum(b > 0 >= a for a, b in zip(margins, first, strict=True))
    return answer.model_copy(
        update={"better": better, "worse": worse, "p_value": sign_test(better, worse)}
    )


def _error(pairs: Sequence[PairIn], place: int, problem: Problem) -> SampleError:
    pair = pairs[place // 2]
    sample = pair.rejected if place % 2 else pair.chosen
    return SampleError(id=sample.id, group=pair.id, error=error_out(problem))
