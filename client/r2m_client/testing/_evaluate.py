"""The call `evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from r2m.errors import Problem
from r2m.statistics import sign_test, wilson
from r2m_client.testing._check import checked, require_finite
from r2m_client.testing._form import MAX_ID, check_samples, check_text, require_distinct

if TYPE_CHECKING:
    from r2m_client._samples import Sample
    from r2m_client.testing._state import Run
    from r2m_client.testing._world import World

SIDES = ("chosen", "rejected")


def evaluate(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """Accuracy of heads on preference pairs; every head is judged on the same pairs.

    Raises:
        Problem: invalid_request, unknown_*, run_archived, backbone_mismatch, duplicate_id.
    """
    pairs: list[dict[str, Any]] = request["pairs"]
    for place, pair in enumerate(pairs):
        check_text(f"pairs[{place}].id", pair["id"], low=1, high=MAX_ID)
        for side in SIDES:
            check_samples([pair[side]], f"pairs[{place}].{side}", one=True)
    run = world.open_run(request["run"])
    heads = {run.head(named).number: None for named in request.get("heads") or ["live"]}
    require_distinct(((one["id"], f"pairs[{n}].id") for n, one in enumerate(pairs)), "pairs")
    margins: dict[int | None, list[float]] = {head: [] for head in (*heads, None)}
    errors: list[dict[str, Any]] = []
    for pair in pairs:
        samples = _sides(world, run, pair, errors)
        found: dict[int | None, list[float]] = {}
        for side, sample in samples.items():
            try:
                require_finite(sample)
                for head in heads:
                    found.setdefault(head, []).append(world.backbone.reward_of(sample, head))
                found.setdefault(None, []).append(world.backbone.vanilla_of(sample))
            except Problem as problem:
                errors.append(_error(pair, side, problem))
        if len(samples) == 2 and all(len(one) == 2 for one in found.values()):
            for head, (chosen, rejected) in found.items():
                margins[head].append(chosen - rejected)
    first = margins[next(iter(heads))]
    judged = [
        _accuracy(margins[head], head, None if place == 0 else first)
        for place, head in enumerate([*heads, None])
    ]
    if request.get("margins"):
        for head, answer in zip([*heads, None], judged, strict=True):
            answer["margins"] = margins[head]
    return {
        "run": run.name,
        "pairs": len(first),
        "heads": judged[:-1],
        "vanilla": judged[-1],
        "errors": errors,
    }


def _sides(
    world: World, run: Run, pair: dict[str, Any], errors: list[dict[str, Any]]
) -> dict[str, Sample]:
    found: dict[str, Sample] = {}
    for side in SIDES:
        try:
            found[side] = checked(world.backbone, run, pair[side]).sample
        except Problem as problem:
            errors.append(_error(pair, side, problem))
    return found


def _error(pair: dict[str, Any], side: str, problem: Problem) -> dict[str, Any]:
    return {"id": pair[side]["id"], "group": pair["id"], "error": problem.as_dict()}


def _accuracy(margins: list[float], head: int | None, first: list[float] | None) -> dict[str, Any]:
    correct, ties = sum(one > 0 for one in margins), sum(one == 0 for one in margins)
    low, high = wilson(correct + ties / 2, len(margins))
    answer: dict[str, Any] = {
        "accuracy": (correct + ties / 2) / len(margins) if margins else 0.0,
        "low": low,
        "high": high,
        "correct": correct,
        "ties": ties,
    }
    if head is not None:
        answer["head"] = head
    if first is None:
        return answer
    better = sum(a > 0 >= b for a, b in zip(margins, first, strict=True))
    worse = sum(b > 0 >= a for a, b in zip(margins, first, strict=True))
    return {**answer, "better": better, "worse": worse, "p_value": sign_test(better, worse)}
