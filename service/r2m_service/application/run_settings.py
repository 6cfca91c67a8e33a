"""A run's method settings: completed when it is created, checked when they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, cast

from r2m.errors import Code, Problem
from r2m_service.application.parsing import parse
from r2m_service.domain.controls import why_senseless
from r2m_service.domain.method import CHANGEABLE, MethodSettings, check_numbers, with_defaults
from r2m_service.domain.runs import FeedbackSource, Run


def settings_of(
    given: dict[str, Any], state_width: int, feedback: FeedbackSource
) -> MethodSettings:
    """A client's `method`, completed from its profile.

    Args:
        state_width: D_p of what the run attends to.

    Raises:
        Problem: invalid_request.
    """
    attends = feedback != "none"
    method = _parsed(lambda: with_defaults(given, state_width=state_width, attends=attends))
    _require_sense(method, feedback, field="method.controls")
    return method


def changed(run: Run, asked: dict[str, Any]) -> tuple[MethodSettings, dict[str, Any]]:
    """A run's settings with what was asked for, and what differs: [before, after] by key.

    Raises:
        Problem: invalid_request.
    """
    fixed = sorted(asked.keys() - CHANGEABLE)
    if fixed or not asked:
        raise Problem(
            Code.INVALID_REQUEST,
            f"what may change is `frozen`, and of the method {', '.join(sorted(CHANGEABLE))}"
            + (f"; {fixed[0][:100]!r} may not" if fixed else ""),
            field=f"method.{fixed[0][:100]}" if fixed else "method",
        )
    old = asdict(run.method)
    wanted = dict(asked)
    if isinstance(wanted.get("gate"), dict):
        wanted["gate"] = {**old["gate"], **wanted["gate"]}
    method = _parsed(lambda: {**old, **check_numbers(wanted)})
    _require_sense(method, run.feedback, field="method.labels")
    new = asdict(method)
    return method, {key: [old[key], new[key]] for key in wanted if old[key] != new[key]}


def _require_sense(method: MethodSettings, feedback: FeedbackSource, *, field: str) -> None:
    senseless = why_senseless(method.controls, feedback, method.labels)
    if senseless is not None:
        raise Problem(Code.INVALID_REQUEST, senseless, field=field)


def _parsed(complete: Callable[[], dict[str, Any]]) -> MethodSettings:
    try:
        settings = complete()
    except ValueError as error:
        raise Problem(Code.INVALID_REQUEST, str(error), field="method") from None
    return parse(MethodSettings, settings, field="method")


def creation_settings(run: Run) -> dict[str, Any]:
    """What a run was created with: what the same request must bring again."""
    return {
        "feedback": run.feedback,
        "policy": asdict(run.policy),
        "truncation": run.texts.truncation,
        "empty_response": run.texts.empty_response,
        "method": asdict(run.method),
    }


def require_same(asked: Run, created: Mapping[str, Any] | None) -> None:
    """Refuse other settings than the run was created with; later changes do not count."""
    # Runs that were made before it was a setting refuse empty responses.
    before = {"empty_response": "error", **(created or {})}
    for what, theirs in creation_settings(asked).items():
        ours = before.get(what)
        if ours != theirs:
            raise Problem(
                Code.RUN_EXISTS,
                f"run {asked.name!r} exists with another {what}: {_difference(ours, theirs)}",
                field=what,
            )


def _difference(ours: Any, theirs: Any) -> str:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        before, asked = cast("dict[str, Any]", ours), cast("dict[str, Any]", theirs)
        for key in asked:
            if before.get(key) != asked[key]:
                return f"{key} is {before.get(key)!r}, asked for {asked[key]!r}"
    return f"it is {ours!r}, asked for {theirs!r}"
