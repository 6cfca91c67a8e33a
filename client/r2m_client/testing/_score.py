"""The call `score`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from r2m.errors import Problem
from r2m_client.testing._check import checked, require_finite
from r2m_client.testing._form import check_number, check_samples, require_distinct
from r2m_client.testing._labels import mark
from r2m_client.testing._state import Usage

if TYPE_CHECKING:
    from r2m_client.testing._backbone import Backbone
    from r2m_client.testing._state import Head, Run
    from r2m_client.testing._world import World


def score(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """Rewards by one version of a run, or without a run the frozen model's.

    Raises:
        Problem: invalid_request, duplicate_id, unknown_*, step_out_of_order, run_archived,
            backbone_mismatch.
    """
    samples: list[dict[str, Any]] = request["samples"]
    check_samples(samples)
    answer: dict[str, Any] = {"fingerprint": world.backbone.fingerprint}
    run = head = None
    if "run" in request:
        step = request.get("step")
        check_number("step", step, 1)
        run = world.open_run(request["run"])
        head, branch = run.scoring_head(request.get("head"), step, request.get("branch"))
        answer |= {
            "run": run.name,
            "head": head.number,
            "branch": branch,
            "omega": head.omega,
            "advice": world.advice_on(run.name),
        }
    require_distinct(
        ((one["id"], f"samples[{place}].id") for place, one in enumerate(samples)), "samples"
    )
    marks = request.get("step") is not None
    if run is not None and head is not None:
        marks = marks or head.number == run.branch(answer["branch"]).live
    scores: list[dict[str, Any]] = []
    for sample in samples:
        found = _scored(world.backbone, run, head, sample)
        if marks and run is not None and head is not None and "error" not in found:
            found = mark(run, head, answer["branch"], sample, found)
        scores.append(found)
    return {**answer, "scores": scores}


def _scored(
    backbone: Backbone, run: Run | None, head: Head | None, given: dict[str, Any]
) -> dict[str, Any]:
    usage = Usage(since="") if run is None else run.usage
    found: dict[str, Any] = {"id": given["id"]}
    if given.get("finish_reason") is not None:
        found["finish_reason"] = given["finish_reason"]
    usage.samples += 1
    try:
        item = checked(backbone, run, given)
        usage.tokens += item.text.tokens
        if item.states is not None:
            usage.feedback_bytes += len(given["feedback"]["data"].data)
        require_finite(item.sample)
        vanilla = backbone.vanilla_of(item.sample)
        reward = vanilla if head is None else backbone.reward_of(item.sample, head.number)
    except Problem as problem:
        usage.failed += 1
        return {**found, "error": problem.as_dict()}
    if item.states is not None:
        found["states"] = item.states
    if item.text.cut:
        found["truncated"] = item.text.cut
    return {**found, "reward": reward, "vanilla_reward": vanilla, "tokens": item.text.tokens}
