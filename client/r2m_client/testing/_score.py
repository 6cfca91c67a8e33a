"""The call `score`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from r2m.errors import Problem
from r2m_client.testing._check import checked, require_finite
from r2m_client.testing._form import check_samples, require_distinct

if TYPE_CHECKING:
    from r2m_client.testing._backbone import Backbone
    from r2m_client.testing._state import Head, Run
    from r2m_client.testing._world import World


def score(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """Rewards by one version of a run, or without a run the frozen model's.

    Raises:
        Problem: invalid_request, duplicate_id, unknown_*, run_archived, backbone_mismatch.
    """
    samples: list[dict[str, Any]] = request["samples"]
    check_samples(samples)
    answer: dict[str, Any] = {"fingerprint": world.backbone.fingerprint}
    run = head = None
    if "run" in request:
        run = world.open_run(request["run"])
        head = run.head(request["head"])
        answer |= {
            "run": run.name,
            "head": head.number,
            "branch": head.branch,
            "omega": head.omega,
        }
    require_distinct(
        ((one["id"], f"samples[{place}].id") for place, one in enumerate(samples)), "samples"
    )
    scores = [_scored(world.backbone, run, head, sample) for sample in samples]
    return {**answer, "scores": scores}


def _scored(
    backbone: Backbone, run: Run | None, head: Head | None, given: dict[str, Any]
) -> dict[str, Any]:
    try:
        sample = checked(backbone, run, given)
        require_finite(sample)
        vanilla = backbone.vanilla_of(sample)
        reward = vanilla if head is None else backbone.reward_of(sample, head.number)
    except Problem as problem:
        return {"id": given["id"], "error": problem.as_dict()}
    return {"id": given["id"], "reward": reward, "vanilla_reward": vanilla}
