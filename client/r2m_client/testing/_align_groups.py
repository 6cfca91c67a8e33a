"""What becomes of an align's groups: used with their rewards, or left out with their errors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from r2m.errors import Problem
from r2m_client._samples import Group, Sample
from r2m_client.testing._check import checked, require_finite
from r2m_client.testing._loss import Rewards
from r2m_client.testing._state import REFERENCE
from r2m_client.testing._texts import query_of

if TYPE_CHECKING:
    from r2m_client.testing._backbone import Backbone
    from r2m_client.testing._labels import Lesson
    from r2m_client.testing._state import Branch, Run


@dataclass(slots=True)
class Sorted:
    """What became of the groups.

    Attributes:
        measured: how many the server's device would have worked on.
        told: groups left out, as progress tells of them: before the device, and by its place.
    """

    used: list[Group] = field(default_factory=list[Group])
    rewards: list[Rewards] = field(default_factory=list[Rewards])
    skipped: Counter[str] = field(default_factory=Counter[str])
    errors: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    withheld: int = 0
    replayed: int = 0
    measured: int = 0
    feedback_bytes: int = 0
    unmeasured: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    skipped_at: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])

    def skip_all(self) -> None:
        """Use none, as if all rewards were equal: what a skipped step looks like."""
        self.skipped += Counter({"equal": len(self.used)})
        self.used.clear()
        self.rewards.clear()
        self.replayed = 0

    @property
    def counts(self) -> dict[str, Any]:
        """For the answer."""
        labelled = sum(one.preferred is not None for one in self.rewards)
        return {
            "used": len(self.used),
            "skipped": self.skipped.total(),
            "pseudo": len(self.used) - labelled,
            "labelled": labelled,
            "skipped_because": dict(sorted(self.skipped.items())),
            "replayed": self.replayed,
            "withheld": self.withheld,
            "disagree": sum(one.disagrees for one in self.rewards),
        }


def sort_groups(
    backbone: Backbone, run: Run, branch: Branch, groups: list[dict[str, Any]], lesson: Lesson
) -> Sorted:
    """Every group with its rewards by live, by the reference and by version 0, or its errors."""
    found = Sorted(withheld=len(lesson.withheld), replayed=lesson.replayed)
    good: list[tuple[dict[str, Any], list[Sample], list[int]]] = []
    for place, sent in enumerate(groups):
        given: dict[str, Any] = sent
        if place in lesson.withheld:
            given = {**sent, "preferred": None}
        samples: list[Sample] = []
        lengths: list[int] = []
        took = 0
        errors: list[dict[str, Any]] = []
        for one in given["samples"]:
            try:
                item = checked(backbone, run, one)
            except Problem as problem:
                errors.append(_sample_error(given, one["id"], problem))
            else:
                samples.append(item.sample)
                lengths.append(item.text.tokens)
                took += item.bytes or 0
        if errors:
            found.skipped["error"] += 1
            found.errors += errors
            found.unmeasured.append({"id": given["id"], "because": "error", "errors": errors})
        else:
            good.append((given, samples, lengths))
            found.feedback_bytes += took
    found.measured = len(good)
    for place, (given, samples, lengths) in enumerate(good):
        errors = []
        rewards = None
        if len(samples) >= 2:
            rewards, errors = _rewards(backbone, run, branch, given, samples, lengths)
        because = _because(run, samples, rewards)
        if because is None:
            assert rewards is not None
            found.used.append(Group(given["id"], samples, given.get("preferred") or None))
            found.rewards.append(rewards)
            continue
        found.skipped[because] += 1
        found.errors += errors
        found.skipped_at[place] = {"id": given["id"], "because": because, "errors": errors}
    return found


def _because(run: Run, samples: list[Sample], rewards: Rewards | None) -> str | None:
    """Why a group is left out, or None."""
    if len(samples) < 2:
        return "too_few"
    if rewards is None:
        return "error"
    if run.method.labels == "outside_only" and rewards.preferred is None:
        return "unlabelled"
    return None if rewards.has_label else "equal"


def _rewards(
    backbone: Backbone,
    run: Run,
    branch: Branch,
    given: dict[str, Any],
    samples: list[Sample],
    lengths: list[int],
) -> tuple[Rewards | None, list[dict[str, Any]]]:
    by_head: dict[int, list[float]] = {branch.live: [], run.aliases[REFERENCE]: [], 0: []}
    vanilla: list[float] = []
    errors: list[dict[str, Any]] = []
    for sample in samples:
        try:
            require_finite(sample)
            for head, rewards in by_head.items():
                rewards.append(backbone.reward_of(sample, head))
            vanilla.append(backbone.vanilla_of(sample))
        except Problem as problem:
            errors.append(_sample_error(given, sample.id, problem))
    if errors:
        return None, errors
    ids = [sample.id for sample in samples]
    named = given.get("preferred")
    preferred = (ids.index(named[0]), ids.index(named[1])) if named else None
    return Rewards(
        trained=by_head[branch.live],
        reference=by_head[run.aliases[REFERENCE]],
        preferred=preferred,
        origin=by_head[0],
        vanilla=vanilla,
        lengths=lengths,
    ), []


def prompts_learnt(groups: list[dict[str, Any]], lesson: Lesson) -> set[str]:
    """Queries whose outside labels a step learns from."""
    return {
        query_of(group["samples"][0])
        for place, group in enumerate(groups)
        if group.get("preferred") and group["samples"] and place not in lesson.withheld
    }


def _sample_error(group: dict[str, Any], sample: str, problem: Problem) -> dict[str, Any]:
    return {"id": sample, "group": group["id"], "error": problem.as_dict()}
