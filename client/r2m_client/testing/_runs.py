"""The calls around runs, heads and aliases."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from r2m.errors import Code, Problem
from r2m_client.testing._answers import full_run_out, head_out, run_out, weights
from r2m_client.testing._controls import require_sense
from r2m_client.testing._form import (
    ALIAS,
    check_number,
    check_rollback,
    check_run,
    check_target,
    invalid,
)
from r2m_client.testing._settings import resolve
from r2m_client.testing._state import (
    EMPTY_RESPONSE,
    FIRST_BRANCH,
    LIVE,
    REFERENCE,
    SERVER_ALIASES,
    Branch,
    Head,
    Policy,
    Run,
    Usage,
)
from r2m_client.testing._world import now

if TYPE_CHECKING:
    from r2m_client.testing._world import World


def server(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """What the server holds."""
    backbone = world.backbone
    return {
        "version": "fake",
        "model": "fake",
        "fingerprint": backbone.fingerprint,
        "hidden_size": backbone.hidden_size,
        "max_length": backbone.max_length,
        "dtype": "float32",
        "device": "cpu",
        "deterministic": True,
        "chat_template": True,
        "truncation": "none",
        "empty_response": EMPTY_RESPONSE,
    }


def create_run(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """A new run, or the run as it is.

    Raises:
        Problem: invalid_request, run_exists, run_archived, backbone_mismatch.
    """
    check_run(request)
    run = _new_run(world, request)
    existing = world.runs.get(run.name)
    if existing is not None:
        existing.require_open(run.fingerprint)
        if not request.get("empty_response"):
            run.empty_response = existing.empty_response
        _require_same(existing, run)
        return run_out(existing, world.advice_on(run.name))
    settings = json.dumps([run.policy.hidden_size, run.feedback, asdict(run.method)])
    run.heads.append(
        Head(
            number=0,
            parent=None,
            branch=FIRST_BRANCH,
            step=0,
            t=0,
            omega=run.method.omega.at(1),
            reference=0,
            verdict="accepted",
            reason="version 0: ranks as the frozen reward model",
            created_at=run.created_at,
            lineage=hashlib.sha256(settings.encode()).hexdigest(),
        )
    )
    run.branches[FIRST_BRANCH] = Branch(FIRST_BRANCH, live=0, step=0)
    run.aliases |= {LIVE: 0, REFERENCE: 0}
    run.created_with = run.settings
    run.changed(run.created_at, "created", run.settings)
    world.runs[run.name] = run
    return run_out(run, world.advice_on(run.name))


def _new_run(world: World, request: dict[str, Any]) -> Run:
    own = world.backbone.hidden_size
    feedback: str = request["feedback"] or "policy"
    stated: dict[str, Any] = request.get("policy") or {}
    width = stated.get("hidden_size")
    if feedback == "policy" and width is None:
        raise invalid(
            "a run with feedback policy needs its policy's hidden size", "policy.hidden_size"
        )
    if feedback != "policy" and width not in (None, own):
        raise invalid(
            f"a run with feedback {feedback} reads the backbone's own states, which are "
            f"{own} wide, not {width}",
            "policy.hidden_size",
        )
    policy = Policy(width or own)
    if feedback == "policy":
        policy = Policy(
            policy.hidden_size,
            stated.get("hidden_state") or "post_norm",
            stated.get("last_token") is not False,
        )
    given: dict[str, Any] = request.get("method") or {}
    method = resolve(given, state_width=policy.hidden_size, attends=feedback != "none")
    require_sense(method.controls, feedback, method.labels)
    return Run(
        name=request["run"],
        fingerprint=world.backbone.fingerprint,
        policy=policy,
        feedback=feedback,
        method=method,
        created_at=now(),
        backbone_width=own,
        usage=Usage(since=world.since),
        truncation=request.get("truncation") or "none",
        empty_response=request.get("empty_response") or EMPTY_RESPONSE,
    )


def _require_same(existing: Run, asked: Run) -> None:
    before = existing.created_with
    for what, theirs in asked.settings.items():
        ours = before[what]
        if ours != theirs:
            raise Problem(
                Code.RUN_EXISTS,
                f"run {existing.name!r} exists with another {what}: {_difference(ours, theirs)}",
                field=what,
            )


def _difference(ours: Any, theirs: Any) -> str:
    if isinstance(theirs, dict):
        for key, asked in cast("dict[str, Any]", theirs).items():
            if ours[key] != asked:
                return f"{key} is {ours[key]!r}, asked for {asked!r}"
    return f"it is {ours!r}, asked for {theirs!r}"


def list_runs(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """All runs, oldest first."""
    return {"runs": [run_out(run, world.advice_on(run.name)) for run in world.runs.values()]}


def get_run(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """One run. Raises Problem(unknown_run)."""
    run = world.run(request["run"])
    return full_run_out(run, world.advice_on(run.name))


def archive_run(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """Make a run read-only. Raises Problem(unknown_run, backbone_mismatch)."""
    run = world.run(request["run"])
    if not run.archived:
        run.require_open(world.backbone.fingerprint)
        run.archived = True
        run.changed(now(), "archived", {})
    return full_run_out(run, world.advice_on(run.name))


def list_heads(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """All versions. Raises Problem(unknown_run)."""
    run = world.run(request["run"])
    return {"heads": [head_out(run, head) for head in run.heads]}


def get_head(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """One version. Raises Problem(unknown_*)."""
    run = world.run(request["run"])
    return head_out(run, run.head(request["head"]))


def head_weights(world: World, request: dict[str, Any]) -> bytes:
    """One version's file. Raises Problem(unknown_*)."""
    run = world.run(request["run"])
    return weights(run, run.head(request["head"]))


def set_alias(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """Point an alias at a version.

    Raises:
        Problem: alias_reserved, alias_moved, invalid_request, unknown_*, run_archived, ...
    """
    for key in ("head", "expect"):
        check_number(key, request.get(key), 0)
    run, alias = world.open_run(request["run"]), request["alias"]
    if alias in SERVER_ALIASES:
        raise Problem(
            Code.ALIAS_RESERVED,
            f"alias {alias!r} is moved by the server alone; rollback takes live back",
            field="alias",
        )
    if not ALIAS.fullmatch(alias):
        raise invalid(
            "an alias starts with a letter and has at most 100 letters, digits, '.', '_', '-'",
            "alias",
        )
    head = run.head(request["head"])
    if alias == REFERENCE and not head.accepted:
        raise invalid(
            f"head {head.number} was {head.verdict}: drift cannot be measured against it", "head"
        )
    before, expect = run.aliases.get(alias), request.get("expect")
    if expect is not None and before != expect:
        where = "is not set" if before is None else f"points at {before}"
        raise Problem(
            Code.ALIAS_MOVED,
            f"alias {alias!r} of run {run.name!r} {where}, not at {expect}",
            field="expect",
        )
    run.aliases[alias] = head.number
    run.changed(now(), "alias", {"alias": alias, "head": head.number})
    return {"run": run.name, "alias": alias, "head": head.number, "previous": before}


def rollback(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """Open a branch at a head or after a step.

    Raises:
        Problem: invalid_request, unknown_*, run_archived, backbone_mismatch.
    """
    check_rollback(request)
    world.run(request["run"])
    check_target(request)
    run = world.open_run(request["run"])
    number, step, origin = request.get("to"), request.get("to_step"), None
    if number is None:
        origin = run.branch(request.get("branch")).name
        number = run.head_after(origin, request["to_step"])
    head = run.head(number)
    if not head.accepted:
        raise invalid(
            f"head {head.number} was {head.verdict}: it never was live and cannot become so", "to"
        )
    branch = Branch(
        name=f"b{len(run.branches)}",
        live=head.number,
        step=head.step if step is None else step,
        origin_branch=origin or head.branch,
        origin_head=head.number,
        origin_step=head.step if step is None else step,
        reason=request.get("reason"),
    )
    detail = {
        "branch": branch.name,
        "head": branch.live,
        "step": branch.step,
        "from_branch": run.current,
        "from_head": run.branch(None).live,
    }
    run.branches[branch.name] = branch
    run.current = branch.name
    run.move_live(branch.live)
    run.changed(now(), "rollback", detail, request.get("reason"))
    return full_run_out(run, world.advice_on(run.name))
