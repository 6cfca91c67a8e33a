"""What may change in a run's life, and the audit trail."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from r2m_client.testing._answers import full_run_out
from r2m_client.testing._controls import require_sense
from r2m_client.testing._form import MAX_REASON, check_text, invalid
from r2m_client.testing._method import Method
from r2m_client.testing._settings import change
from r2m_client.testing._world import now

if TYPE_CHECKING:
    from r2m_client.testing._state import Run
    from r2m_client.testing._world import World

CHANGEABLE = frozenset(
    {
        "alpha",
        "learning_rate",
        "weight_decay",
        "max_grad_norm",
        "kl_weight",
        "labels",
        "replay_groups",
        "audit_rate",
        "freeze_on_alarm",
        "gate",
    }
)


def update_run(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """Other settings, or a freeze, or its end.

    Raises:
        Problem: invalid_request, unknown_run, run_archived, backbone_mismatch.
    """
    check_text("reason", request.get("reason"), high=MAX_REASON)
    run = world.open_run(request["run"])
    asked: dict[str, Any] = request.get("method") or {}
    frozen: bool | None = request.get("frozen")
    method, detail = run.method, dict[str, Any]()
    if asked or frozen is None:
        method, detail = _changed(run.method, asked)
        require_sense(method.controls, run.feedback, method.labels, "method.labels")
    if frozen is not None:
        set_frozen(run, request.get("reason"), frozen=frozen)
    if asked:
        run.method = method
        run.changed(now(), "updated", detail, request.get("reason"))
    return full_run_out(run, world.advice_on(run.name))


def set_frozen(run: Run, reason: str | None, *, frozen: bool) -> None:
    """Freeze or lift; the same again changes nothing."""
    if (run.frozen is not None) == frozen:
        return
    detail = {} if run.frozen is None else {"was": run.frozen}
    run.frozen = (reason or "frozen by hand") if frozen else None
    if not frozen:
        for branch in run.branches.values():
            branch.rejections = 0
    run.changed(now(), "frozen" if frozen else "unfrozen", detail, reason)


def list_changes(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """The audit trail, oldest first. Raises Problem(unknown_run)."""
    return {"changes": world.run(request["run"]).changes}


def _changed(before: Method, asked: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
    fixed = sorted(asked.keys() - CHANGEABLE)
    if fixed or not asked:
        raise invalid(
            f"what may change is `frozen`, and of the method {', '.join(sorted(CHANGEABLE))}"
            + (f"; {fixed[0][:100]!r} may not" if fixed else ""),
            f"method.{fixed[0][:100]}" if fixed else "method",
        )
    method = change(before, asked)
    old, new = asdict(before), asdict(method)
    return method, {key: [old[key], new[key]] for key in asked if old[key] != new[key]}
