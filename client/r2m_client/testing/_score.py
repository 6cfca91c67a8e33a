"""The call `score`."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from r2m.errors import Code, Problem
from r2m_client.testing._check import Checked, checked, require_finite
from r2m_client.testing._form import check_number, check_samples, require_distinct
from r2m_client.testing._labels import mark
from r2m_client.testing._state import Usage

if TYPE_CHECKING:
    from r2m_client.testing._backbone import Backbone
    from r2m_client.testing._state import Head, Run
    from r2m_client.testing._world import World

NUMBER_BYTES = 8


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
    if run is not None and any("u" in one for one in scores):
        answer["v"] = _vector(run)
    return {**answer, "scores": scores}


def _asked(run: Run, head: Head, item: Checked, found: dict[str, Any]) -> dict[str, Any] | None:
    """What goes out first where states stay with the trainer; None: it has told its number.

    u and v are zeros here: the test's own function gives the reward, whatever comes back.
    """
    split = item.split or {}
    if item.bytes:
        raise Problem(
            Code.FEEDBACK_UNEXPECTED,
            "c and j are for align; at score v·c goes back, in feedback.split.fused",
            field="feedback.data",
        )
    stale = split.get("fused") is not None and split.get("head") not in (None, head.number)
    if split.get("fused") is not None and not stale:
        return None
    if stale:
        found["error"] = Problem(
            Code.STALE_CONTEXT,
            f"v·c was computed with u and v of head {split['head']}, and head {head.number} "
            "scores: compute it with this answer's u and v",
            field="feedback.split.head",
        ).as_dict()
    took = 4 * (run.policy.hidden_size or 0)
    run.usage.feedback_bytes += took
    run.usage.samples -= 1
    run.usage.tokens -= item.text.tokens
    return {
        **found,
        "tokens": item.text.tokens,
        "states": item.states,
        "u": _vector(run),
        "feedback_bytes": took,
    }


def _vector(run: Run) -> str:
    return base64.b64encode(bytes(4 * (run.policy.hidden_size or 0))).decode()


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
        if item.split is not None and run is not None and head is not None:
            asked = _asked(run, head, item, found)
            if asked is not None:
                return asked
        if item.states is not None:
            found["feedback_bytes"] = item.bytes or NUMBER_BYTES
            usage.feedback_bytes += found["feedback_bytes"]
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
