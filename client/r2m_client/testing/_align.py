"""The call `align`: exactly once for (run, branch, step), with the verdict that the test wants."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from r2m.errors import Code, Problem
from r2m_client.testing._align_groups import Sorted, prompts_learnt, sort_groups
from r2m_client.testing._anchors import judge, proof_of
from r2m_client.testing._controls import asked_after, controls_of
from r2m_client.testing._form import check_align, invalid
from r2m_client.testing._labels import lesson_of
from r2m_client.testing._loss import losses, sigma
from r2m_client.testing._state import CANDIDATE, REFERENCE, Answered, Branch, Head, Run
from r2m_client.testing._texts import OF_RAW
from r2m_client.testing._verdict import evidence_of, notes_of, reason_of
from r2m_client.testing._world import now

if TYPE_CHECKING:
    from r2m_client.testing._world import World

WITHOUT_CANDIDATE = frozenset({"skipped", "frozen"})
TEXTS = ("id", "prompt", "response", *OF_RAW, "messages", "tools", "token_ids")


def align(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """One update; a retry gets the first answer.

    Raises:
        Problem: invalid_request, duplicate_id, unknown_*, run_archived, backbone_mismatch,
            step_conflict, step_out_of_order, branch_left, no_anchors.
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
    if run.frozen is not None:
        answer = _frozen(world, run, branch, request, run.frozen)
    else:
        answer = _aligned(world, run, branch, request, content)
    run.steps[branch.name, step] = Answered(content, json.dumps(answer), answer["head"])
    return answer


def reply_align(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """The fake's aligns ask nothing: there is no ticket that could be replied to.

    Raises:
        Problem: unknown_run, unknown_ticket.
    """
    run = world.open_run(request["run"])
    raise Problem(
        Code.UNKNOWN_TICKET,
        f"no align of run {run.name!r} waits for replies to this ticket: send the align again",
        field="ticket",
    )


def _frozen(
    world: World, run: Run, branch: Branch, request: dict[str, Any], reason: str
) -> dict[str, Any]:
    """The answer of a run that changes nothing: the step advances, nothing else does."""
    groups = len(request["groups"])
    counts = {**Sorted().counts, "skipped": groups}
    if groups:
        counts["skipped_because"] = {"frozen": groups}
    parent = run.heads[branch.live]
    branch.step = request["step"]
    return {
        "run": run.name,
        "step": request["step"],
        "branch": branch.name,
        "head": parent.number,
        "parent": parent.number,
        "accepted": False,
        "verdict": "frozen",
        "reason": reason,
        "omega": parent.omega,
        "loss": {},
        "groups": counts,
        "anchors_step": run.next_anchors(request["step"]),
        "advice": world.advice_on(run.name),
    }


def _aligned(
    world: World, run: Run, branch: Branch, request: dict[str, Any], content: str
) -> dict[str, Any]:
    lesson = lesson_of(run, request)
    # Whatever the test's functions raise ends the call here, and nothing has changed yet.
    groups = sort_groups(world.backbone, run, branch, request["groups"], lesson)
    advice = world.advice_on(run.name)
    verdict = "skipped"
    if groups.used or groups.replayed:
        verdict = world.backbone.verdict_on(request["step"], groups.used)
    if verdict == "frozen":
        run.usage.aligns += 1
        return _frozen(world, run, branch, request, "the test wants it frozen")
    if verdict == "skipped":
        groups.skip_all()
    judged, anchor_errors = None, list[dict[str, Any]]()
    if verdict != "skipped":
        judged, anchor_errors = judge(world.backbone, run, branch, request)
    world.told = groups
    answer = _conclude(run, branch, request, groups, verdict, content, judged)
    answer["errors"] += anchor_errors
    answer["advice"] = advice
    if verdict != "skipped":
        run.trained |= prompts_learnt(request["groups"], lesson)
    run.usage.aligns += 1
    run.usage.feedback_bytes += groups.feedback_bytes
    return answer


def _conclude(
    run: Run,
    branch: Branch,
    request: dict[str, Any],
    groups: Sorted,
    verdict: str,
    content: str,
    judged: dict[str, Any] | None,
) -> dict[str, Any]:
    """The answer; the run and the branch are moved on."""
    parent, accepted = run.heads[branch.live], verdict == "accepted"
    made = verdict not in WITHOUT_CANDIDATE
    number = len(run.heads) if made else None
    live = number if accepted and number is not None else parent.number
    omega = run.method.omega.at(parent.t + 2)
    reason, drift = reason_of(verdict, run.method.gate, groups, empty=not request["groups"])
    if accepted and judged is not None:
        reason += proof_of(judged)
    metrics: dict[str, Any] = {"loss": {}, "groups": groups.counts}
    if made:
        spreads = [sigma(one.trained) for one in groups.rewards]
        metrics |= {
            "loss": losses(groups.rewards, alpha=run.method.alpha, kl_weight=run.method.kl_weight),
            "sigma": sum(spreads) / len(spreads) if spreads else None,
            "gradient_norm": 1.0,
            "evidence": evidence_of(groups),
        }
        controls = controls_of(run, parent, groups, accepted=accepted)
        if controls is not None:
            metrics["controls"] = controls
        if drift is not None:
            metrics["drift"] = {"reference": run.aliases[REFERENCE], **drift}
        if judged is not None:
            metrics["anchors"] = judged
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
        "errors": list(groups.errors),
        "notes": notes_of(groups) if made else [],
        "anchors_step": run.next_anchors(request["step"]),
        "feedback_bytes": groups.feedback_bytes or None,
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
                asked=asked_after(run, parent, groups, accepted=accepted),
            )
        )
    branch.step, branch.live = request["step"], live
    run.move_live(branch.live)
    if number is not None:
        run.aliases[CANDIDATE] = number
    _count_rejections(run, branch, verdict, reason)
    return answer


def _count_rejections(run: Run, branch: Branch, verdict: str, reason: str) -> None:
    """In a row; a step that could not tell neither adds to them nor ends them."""
    if verdict == "accepted":
        branch.rejections = 0
    elif verdict == "rejected":
        branch.rejections += 1
        most = run.method.gate.freeze_after
        if most is not None and branch.rejections >= most:
            run.frozen = (
                f"{branch.rejections} candidates in a row were rejected, the last one: {reason}"
            )
            at = {"branch": branch.name, "step": branch.step}
            run.changed(now(), "frozen", at, run.frozen)


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


def _hash(request: dict[str, Any]) -> str:
    """SHA-256 of what an align asks for: ids, texts, labels, what is stated, and the bytes."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        encoded = json.dumps(value).encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)

    pairs = request.get("anchors") or ()
    sides = [
        {"id": f"anchor {one['id']}", "samples": [one["chosen"], one["rejected"]]} for one in pairs
    ]
    groups: list[dict[str, Any]] = [*request["groups"], *sides]
    for group in groups:
        add([group["id"], group.get("preferred") or None, len(group["samples"])])
        for sample in group["samples"]:
            feedback = dict(sample.get("feedback") or {})
            value = feedback.pop("data", None)
            add([sample.get(key) for key in TEXTS])
            add([sample["format"] or "chat", sorted(feedback.items())])
            if value is not None:
                digest.update(value.data)
    return digest.hexdigest()
