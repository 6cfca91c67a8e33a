"""The call `align`: exactly once for (run, branch, step), with the verdict that the test wants."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from r2m.errors import Code, Problem
from r2m_client._samples import Group, Sample
from r2m_client.testing._check import checked, require_finite
from r2m_client.testing._form import check_align, invalid
from r2m_client.testing._loss import Rewards, losses, sigma
from r2m_client.testing._state import CANDIDATE, REFERENCE, Answered, Branch, Head, Run
from r2m_client.testing._world import now

if TYPE_CHECKING:
    from r2m_client.testing._backbone import Backbone
    from r2m_client.testing._method import Gate
    from r2m_client.testing._world import World

WITHOUT_CANDIDATE = frozenset({"skipped", "frozen"})


@dataclass(slots=True)
class Sorted:
    """What became of the groups."""

    used: list[Group] = field(default_factory=list[Group])
    rewards: list[Rewards] = field(default_factory=list[Rewards])
    skipped: Counter[str] = field(default_factory=Counter[str])
    errors: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    measured: int = 0

    def skip_all(self) -> None:
        """Use none, as if all rewards were equal: what a skipped step looks like."""
        self.skipped += Counter({"equal": len(self.used)})
        self.used.clear()
        self.rewards.clear()

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
            "replayed": 0,
            "withheld": 0,
            "disagree": sum(one.disagrees for one in self.rewards),
        }


def align(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """One update; a retry gets the first answer.

    Raises:
        Problem: invalid_request, duplicate_id, unknown_*, run_archived, backbone_mismatch,
            step_conflict, step_out_of_order, branch_left.
    """
    check_align(request)
    run = world.open_run(request["run"])
    branch, step, content = run.branch(request.get("branch")), request["step"], _hash(request)
    answered = run.steps.get((branch.name, step))
    if answered is not None:
        if answered.content != content:
            raise Problem(
                Code.STEP_CONFLICT,
                f"step {step} of branch {branch.name!r} was answered for other content; a "
                "trainer that resumed from an older checkpoint calls rollback with to_step "
                "first and gets a branch of its own",
                field="step",
            )
        return json.loads(answered.answer)
    if step != branch.step + 1:
        raise Problem(
            Code.STEP_OUT_OF_ORDER,
            f"branch {branch.name!r} expects step {branch.step + 1}, got {step}",
            field="step",
        )
    if branch.name != run.current:
        raise Problem(
            Code.BRANCH_LEFT,
            f"a rollback has moved run {run.name!r} to branch {run.current!r}; branch "
            f"{branch.name!r} takes no new steps",
            field="branch",
        )
    _require_labels_taken(run, request)
    # Whatever the test's functions raise ends the call here, and nothing has changed yet.
    groups = _sorted(world.backbone, run, branch, request["groups"])
    verdict = "skipped"
    if groups.used:
        verdict = world.backbone.verdict_on(step, groups.used)
    if verdict == "skipped":
        groups.skip_all()
    world.measured = groups.measured
    answer = _conclude(run, branch, request, groups, verdict, content)
    run.steps[branch.name, step] = Answered(content, json.dumps(answer), answer["head"])
    run.usage.aligns += 1
    return answer


def _conclude(
    run: Run,
    branch: Branch,
    request: dict[str, Any],
    groups: Sorted,
    verdict: str,
    content: str,
) -> dict[str, Any]:
    """The answer; the run and the branch are moved on."""
    parent, accepted = run.heads[branch.live], verdict == "accepted"
    made = verdict not in WITHOUT_CANDIDATE
    number = len(run.heads) if made else None
    live = number if accepted and number is not None else parent.number
    omega = run.method.omega.at(parent.t + 2)
    reason, drift = _reason(verdict, run.method.gate, groups, empty=not request["groups"])
    counts = groups.counts
    metrics: dict[str, Any] = {"loss": {}, "groups": counts}
    if made:
        spreads = [sigma(one.trained) for one in groups.rewards]
        metrics |= {
            "loss": losses(groups.rewards, alpha=run.method.alpha, kl_weight=run.method.kl_weight),
            "sigma": sum(spreads) / len(spreads),
            "gradient_norm": 1.0,
        }
        if drift is not None:
            metrics["drift"] = {"reference": run.aliases[REFERENCE], **drift}
    answer = {
        "run": run.name,
        "step": request["step"],
        "branch": branch.name,
        "head": live,
        "candidate": number,
        "parent": parent.number,
        "accepted": accepted,
        "verdict": verdict,
        "reason": reason,
        "omega": omega if accepted else parent.omega,
        "errors": groups.errors,
        "notes": _notes(groups) if made else [],
        "advice": "ok",
        **metrics,
    }
    if number is not None:
        run.heads.append(
            Head(
                number=number,
                parent=parent.number,
                branch=branch.name,
                step=request["step"],
                t=parent.t + 1,
                omega=omega,
                reference=run.aliases[REFERENCE],
                verdict=verdict,
                reason=reason,
                created_at=now(),
                lineage=hashlib.sha256(f"{parent.lineage} {content}".encode()).hexdigest(),
                metrics=metrics,
            )
        )
    branch.step, branch.live = request["step"], live
    run.move_live(branch.live)
    if number is not None:
        run.aliases[CANDIDATE] = number
    return answer


def _sorted(backbone: Backbone, run: Run, branch: Branch, groups: list[dict[str, Any]]) -> Sorted:
    found = Sorted()
    good: list[tuple[dict[str, Any], list[Sample]]] = []
    for given in groups:
        samples: list[Sample] = []
        for one in given["samples"]:
            try:
                samples.append(checked(backbone, run, one).sample)
            except Problem as problem:
                found.errors.append(_sample_error(given, one["id"], problem))
        if len(samples) < len(given["samples"]):
            found.skipped["error"] += 1
        else:
            good.append((given, samples))
    found.measured = len(good)
    for given, samples in good:
        if len(samples) < 2:
            found.skipped["too_few"] += 1
            continue
        rewards = _rewards(backbone, run, branch, given, samples, found)
        if rewards is None:
            found.skipped["error"] += 1
        elif not rewards.has_label:
            found.skipped["equal"] += 1
        else:
            found.used.append(Group(given["id"], samples, given.get("preferred") or None))
            found.rewards.append(rewards)
    return found


def _rewards(
    backbone: Backbone,
    run: Run,
    branch: Branch,
    given: dict[str, Any],
    samples: list[Sample],
    found: Sorted,
) -> Rewards | None:
    trained, reference = list[float](), list[float]()
    for sample in samples:
        try:
            require_finite(sample)
            trained.append(backbone.reward_of(sample, branch.live))
            reference.append(backbone.reward_of(sample, run.aliases[REFERENCE]))
        except Problem as problem:
            found.errors.append(_sample_error(given, sample.id, problem))
    if len(trained) < len(samples) or len(reference) < len(samples):
        return None
    ids = [sample.id for sample in samples]
    named = given.get("preferred")
    preferred = (ids.index(named[0]), ids.index(named[1])) if named else None
    return Rewards(trained, reference, preferred)


def _reason(
    verdict: str, gate: Gate, groups: Sorted, *, empty: bool
) -> tuple[str, dict[str, Any] | None]:
    """Words, and drift numbers, that a server with this verdict could have answered."""
    count = sum(len(one.trained) for one in groups.rewards)
    drift: dict[str, Any] | None = None
    if gate.checks_drift:
        drift = {"spread_ratio": 1.0, "rank_correlation": 1.0, "samples": count}
    if verdict == "skipped":
        return ("no groups" if empty else "no group could be used"), None
    if verdict == "frozen":
        return "the run is frozen", None
    if verdict == "accepted":
        if drift is None:
            return "finite; the gate asks for nothing else", None
        words = "finite; spread ratio 1.000, rank correlation 1.000"
        return f"{words} on {count} samples", drift
    if drift is None:
        return "the loss, the gradient or the candidate is not finite", None
    if verdict == "undecided":
        del drift["spread_ratio"], drift["rank_correlation"]
        if gate.spread_min is None and gate.spread_max is None:
            return "too few distinct rewards for a rank correlation", drift
        return "the reference's rewards are equal in every group", drift
    if gate.rank_correlation_min is not None:
        drift["rank_correlation"] = -1.0
        return f"rank correlation -1.000 is below {gate.rank_correlation_min:g}", drift
    drift["spread_ratio"] = ratio = 2 * gate.spread_max if gate.spread_max else 0.0
    bound = gate.spread_max if gate.spread_max else gate.spread_min
    return f"spread ratio {ratio:.3g} is {'above' if ratio else 'below'} {bound:g}", drift


def _notes(groups: Sorted) -> list[str]:
    bare = sum(one.preferred is None and not one.has_gre for one in groups.rewards)
    if bare == 0:
        return []
    return [f"{bare} groups of two samples: BT alone, since GRE is constant at K = 2"]


def _require_labels_taken(run: Run, request: dict[str, Any]) -> None:
    if run.method.labels != "pseudo":
        return
    for place, group in enumerate(request["groups"]):
        if group.get("preferred"):
            raise invalid(
                f"run {run.name!r} learns from pseudo labels alone (method.labels); it takes no "
                "outside label",
                f"groups[{place}].preferred",
            )


def _sample_error(group: dict[str, Any], sample: str, problem: Problem) -> dict[str, Any]:
    return {"id": sample, "group": group["id"], "error": problem.as_dict()}


def _hash(request: dict[str, Any]) -> str:
    """SHA-256 of what an align asks for: ids, texts, labels, what is stated, and the bytes."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        encoded = json.dumps(value).encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)

    for group in request["groups"]:
        add([group["id"], group.get("preferred") or None, len(group["samples"])])
        for sample in group["samples"]:
            feedback = dict(sample.get("feedback") or {})
            value = feedback.pop("data", None)
            add([sample.get(key) for key in ("id", "prompt", "response", "tools")])
            add([sample["format"] or "chat", sorted(feedback.items())])
            if value is not None:
                digest.update(value.data)
    return digest.hexdigest()
