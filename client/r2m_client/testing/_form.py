"""The form of requests: what the real server refuses before it looks at any run.

Only what can get through the client's own typed methods, in the server's words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from r2m.errors import Code, Problem

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")
LIMIT = 2**31
MAX_REASON = 1000
MAX_ID = 256
MAX_WIDTH = 1 << 20
MAX_NAME = 100
EXCERPT = 40


def invalid(message: str, field: str) -> Problem:
    """An invalid_request."""
    return Problem(Code.INVALID_REQUEST, message, field=field)


def must(field: str, what: str, got: object) -> Problem:
    """An invalid_request about one field's value."""
    return invalid(f"{field} {what}, got {excerpt(got)}", field)


def check_number(field: str, value: Any, low: int, high: int | None = LIMIT) -> None:
    """A whole number in [low, high).

    Raises:
        Problem: invalid_request.
    """
    if value is None:
        return
    if value < low:
        raise must(field, f"must be at least {low}", value)
    if high is not None and value >= high:
        raise must(field, f"must be below {high}", value)


def check_choice(field: str, value: object, choices: Sequence[str]) -> None:
    """One of some words, or nothing.

    Raises:
        Problem: invalid_request.
    """
    if value is not None:
        require_choice(field, value, choices)


def require_choice(field: str, value: object, choices: Sequence[str]) -> None:
    """One of some words.

    Raises:
        Problem: invalid_request.
    """
    if value not in choices:
        listed = [repr(one) for one in choices]
        raise must(field, f"must be {', '.join(listed[:-1])} or {listed[-1]}", value)


def check_text(field: str, value: object, *, low: int = 0, high: int) -> None:
    """A string of some length, or nothing.

    Raises:
        Problem: invalid_request.
    """
    if value is None:
        return
    if not isinstance(value, str):
        raise must(field, "must be a string", value)
    if len(value) < low:
        raise must(field, f"must have at least {low} character(s)", value)
    if len(value) > high:
        raise must(field, f"must have at most {high} characters", value)


def check_run(request: dict[str, Any]) -> None:
    """The form of a new run.

    Raises:
        Problem: invalid_request.
    """
    if not isinstance(request["run"], str) or not re.fullmatch(NAME, request["run"]):
        raise must("run", f"must match {NAME}", request["run"])
    policy = request.get("policy") or {}
    size = policy.get("hidden_size")
    check_number("policy.hidden_size", size, 1, None)
    if size is not None and size > MAX_WIDTH:
        raise must("policy.hidden_size", f"must be at most {MAX_WIDTH}", size)
    check_choice("policy.hidden_state", policy.get("hidden_state"), ("post_norm", "pre_norm", ""))
    check_choice("feedback", request["feedback"], ("policy", "backbone", "none", ""))
    check_choice("truncation", request.get("truncation"), ("none", "left", "right", ""))
    check_choice("empty_response", request.get("empty_response"), ("score", "error", ""))


def check_samples(
    samples: list[dict[str, Any]], path: str = "samples", *, one: bool = False
) -> None:
    """The form of samples; their texts and tensors are each sample's own matter.

    Args:
        samples: of the request.
        path: where they are in it.
        one: whether there it is a single sample, not a list.

    Raises:
        Problem: invalid_request.
    """
    for place, sample in enumerate(samples):
        at = path if one else f"{path}[{place}]"
        check_text(f"{at}.id", sample["id"], low=1, high=MAX_ID)
        check_choice(f"{at}.format", sample.get("format"), ("chat", "raw", ""))
        stated = (sample.get("feedback") or {}).get("hidden_state")
        check_choice(f"{at}.feedback.hidden_state", stated, ("post_norm", "pre_norm"))
        check_choice(f"{at}.truncation", sample.get("truncation"), ("left", "right"))
        check_text(f"{at}.finish_reason", sample.get("finish_reason"), high=MAX_NAME)


def check_align(request: dict[str, Any]) -> None:
    """The form of an align: ids, labels, the step.

    Raises:
        Problem: invalid_request or duplicate_id.
    """
    check_number("step", request["step"], 1)
    check_text("branch", request.get("branch"), high=MAX_NAME)
    groups = request["groups"]
    for place, group in enumerate(groups):
        at = f"groups[{place}]"
        check_text(f"{at}.id", group["id"], low=1, high=MAX_ID)
        check_samples(group["samples"], f"{at}.samples")
        if len(group.get("preferred") or ()) > 2:
            raise invalid(f"{at}.preferred must have at most 2 entries", f"{at}.preferred")
    require_distinct(
        ((group["id"], f"groups[{place}].id") for place, group in enumerate(groups)), "groups"
    )
    require_distinct(
        (
            (sample["id"], f"groups[{place}].samples[{member}].id")
            for place, group in enumerate(groups)
            for member, sample in enumerate(group["samples"])
        ),
        "samples",
    )
    pairs: list[dict[str, Any]] = request.get("anchors") or []
    require_distinct(
        ((pair["id"], f"anchors[{place}].id") for place, pair in enumerate(pairs)), "anchor pairs"
    )
    for place, group in enumerate(groups):
        named = group.get("preferred")
        if not named:
            continue
        ids = {sample["id"] for sample in group["samples"]}
        if len(set(named)) != 2 or not ids.issuperset(named):
            raise invalid(
                "preferred is [winner, loser]: two different sample ids of its group",
                f"groups[{place}].preferred",
            )


def check_rollback(request: dict[str, Any]) -> None:
    """The form of a rollback.

    Raises:
        Problem: invalid_request.
    """
    for key in ("to", "to_step"):
        check_number(key, request.get(key), 0)
    check_text("branch", request.get("branch"), high=MAX_NAME)
    check_text("reason", request.get("reason"), high=MAX_REASON)


def check_target(request: dict[str, Any]) -> None:
    """That a rollback of a known run has one target.

    Raises:
        Problem: invalid_request.
    """
    if (request.get("to") is None) == (request.get("to_step") is None):
        raise invalid("give either `to` (a head) or `to_step`", "to")


def require_distinct(ids: Iterable[tuple[str, str]], what: str) -> None:
    """Refuse a call in which two things carry one id; each comes with the place of its field.

    Raises:
        Problem: duplicate_id, at the second one.
    """
    seen: set[str] = set()
    for one, field in ids:
        if one in seen:
            raise Problem(
                Code.DUPLICATE_ID,
                f"two {what} have the id {one[:80]!r}; ids are distinct",
                field=field,
            )
        seen.add(one)


def excerpt(value: object) -> str:
    """A short form of a value, as the server's sentences have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return repr(value[:EXCERPT]) + ("…" if len(value) > EXCERPT else "")
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a huge number"
    if isinstance(value, int | float):
        return repr(value)
    return "an object" if isinstance(value, dict) else "a list"
