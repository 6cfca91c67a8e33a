"""From a client's `method` to settings: the server's keys, defaults and checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, cast

from r2m.errors import Problem
from r2m_client.testing._form import invalid, must, require_choice
from r2m_client.testing._method import Gate, Method, Omega

WIDTH = 2048
MAX_WIDTH = 65536
LARGEST = 1000.0
NUMBERS = (
    "width",
    "alpha",
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "kl_weight",
    "replay_groups",
    "audit_rate",
    "judge_share",
    "seed",
)
CONTROLS = ("shuffled", "backbone", "none")
LABELS = ("pseudo", "outside_first", "outside_only")
MAX_REPLAY = 4096
NO_DRIFT = {"spread_min": None, "spread_max": None, "rank_correlation_min": None}
CHOICES = {"undecided": ("hold", "move"), "reference": ("fixed", "anchors")}
OPTIONAL = frozenset({*NO_DRIFT, "anchors_every", "freeze_after"})
TAKES = {
    "cosine": ("total_steps", "floor"),
    "constant": ("value",),
    "ramp": ("steps", "floor"),
}
WHOLE = frozenset(
    {
        "width",
        "seed",
        "total_steps",
        "steps",
        "replay_groups",
        "anchors_every",
        "anchors_looks",
        "freeze_after",
    }
)


def resolve(given: Mapping[str, Any], *, state_width: int, attends: bool) -> Method:
    """A client's `method`, checked and completed from its profile.

    Args:
        given: from the client.
        state_width: D_p, or the backbone's width where a run has no policy states.
        attends: False for feedback `none`.

    Raises:
        Problem: invalid_request.
    """
    _check_numbers(given)
    values = {**_defaults(given, state_width, attends=attends), **given}
    if not attends and "omega" in given:
        raise invalid("a run with feedback none has no attention: it takes no omega", "method")
    gate = _object(values["gate"], "method.gate")
    return _parsed({**values, "gate": {**GATES[values["profile"]], **gate}})


def change(before: Method, asked: Mapping[str, Any]) -> Method:
    """The method with other values for some keys; of the gate, what is not given stays.

    Raises:
        Problem: invalid_request.
    """
    _check_numbers(asked)
    old = asdict(before)
    gate = _object(asked.get("gate", {}), "method.gate")
    return _parsed({**old, **asked, "gate": {**old["gate"], **gate}})


def _check_numbers(given: Mapping[str, Any]) -> None:
    for key in NUMBERS:
        value = given.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise invalid(f"{key} is a number", "method")
    if not isinstance(given.get("freeze_on_alarm", False), bool):
        raise invalid("freeze_on_alarm is true or false", "method")


def _parsed(values: dict[str, Any]) -> Method:
    values["omega"] = _omega(values["omega"])
    values["gate"] = _gate(values["gate"])
    _known(values, Method, "method")
    for key in NUMBERS:
        if key != "max_grad_norm" or values[key] is not None:
            values[key] = _number(values[key], f"method.{key}", whole=key in WHOLE)
    require_choice("method.labels", values["labels"], LABELS)
    _check_controls(values["controls"])
    method = Method(**values)
    _check_ranges(method)
    return method


def _defaults(given: Mapping[str, Any], state_width: int, *, attends: bool) -> dict[str, Any]:
    profile = given.get("profile", "guarded")
    width = given.get("width", WIDTH)
    known: dict[str, Any] = {
        "profile": profile,
        "width": WIDTH,
        "alpha": 0.3,
        "replay_groups": 64,
        "audit_rate": 0.0,
        "judge_share": 0.5,
        "freeze_on_alarm": False,
        "seed": 0,
        "controls": [],
        "gate": {},
    }
    if not attends:
        known["omega"] = {"kind": "constant", "value": 1.0}
    if profile == "paper":
        if attends and "omega" not in given:
            raise invalid(
                "profile paper needs its number of rounds T: give "
                '`"omega": {"kind": "cosine", "total_steps": T, "floor": 0.6}`',
                "method",
            )
        return known | {
            "learning_rate": 1e-6,
            "weight_decay": 0.01,
            "max_grad_norm": None,
            "kl_weight": 0.0,
            "labels": "pseudo",
            "replay_groups": 0,
        }
    if profile not in ("guarded", "labelled"):
        raise invalid("profile is paper, guarded or labelled", "method")
    guarded = profile == "guarded"
    sized = isinstance(width, int | float) and 0 < width <= MAX_WIDTH
    return (
        {"omega": {"kind": "constant", "value": 0.6}}
        | known
        | {
            "learning_rate": 0.04 / math.sqrt(state_width * width) if sized else 1e-4,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "kl_weight": 1.0 if guarded else 0.0,
            "labels": "outside_first" if guarded else "outside_only",
        }
    )


GATES: dict[str, dict[str, Any]] = {
    "paper": {**NO_DRIFT, "anchors_every": None, "freeze_after": None},
    "guarded": {},
    "labelled": NO_DRIFT,
}


def _omega(given: object) -> Omega:
    values = _object(given, "method.omega")
    _known(values, Omega, "method.omega")
    if "kind" not in values:
        raise invalid("method.omega.kind is missing", "method.omega.kind")
    kind = values["kind"]
    require_choice("method.omega.kind", kind, tuple(TAKES))
    numbers = {
        key: _number(value, f"method.omega.{key}", whole=key in WHOLE)
        for key, value in values.items()
        if key != "kind" and value is not None
    }
    for key in ("value", "total_steps", "steps", "floor"):
        if key in TAKES[kind] and key not in numbers:
            raise _wrong(f"omega of kind {kind} needs `{key}`", "method.omega")
        if key not in TAKES[kind] and key in numbers:
            raise _wrong(f"omega of kind {kind} takes no `{key}`", "method.omega")
    for key in ("value", "floor"):
        if key in numbers and not 0 <= numbers[key] <= 1:
            sentence = f"omega's `{key}` is between 0 and 1, got {numbers[key]}"
            raise _wrong(sentence, "method.omega")
    for key in ("total_steps", "steps"):
        if key in numbers and not 1 <= numbers[key] < 2**31:
            raise _wrong(f"omega's `{key}` is between 1 and 2**31 - 1", "method.omega")
    return Omega(kind=kind, **cast("dict[str, Any]", numbers))


def _gate(values: dict[str, Any]) -> Gate:
    _known(values, Gate, "method.gate")
    for key, value in list(values.items()):
        path = f"method.gate.{key}"
        if key in CHOICES:
            require_choice(path, value, CHOICES[key])
        elif value is not None or key not in OPTIONAL:
            values[key] = _number(value, path, whole=key in WHOLE)
    gate = Gate(**values)
    for key in ("anchors_every", "freeze_after", "anchors_looks"):
        found = getattr(gate, key)
        if found is not None and not 1 <= found < 2**31:
            sentence = f"gate.{key} is between 1 and 2**31 - 1, got {found}"
            raise _wrong(sentence, "method.gate")
    for key in ("anchors_margin", "anchors_alpha"):
        found = getattr(gate, key)
        if not 0 < found < 0.5:
            sentence = f"gate.{key} is above 0 and below 0.5, got {found}"
            raise _wrong(sentence, "method.gate")
    for key in ("spread_min", "spread_max"):
        bound = getattr(gate, key)
        if bound is not None and not 0 < bound < math.inf:
            raise _wrong(f"gate.{key} is a positive number or null, got {bound}", "method.gate")
    if gate.spread_min and gate.spread_max and gate.spread_min >= gate.spread_max:
        raise _wrong("gate.spread_min is below gate.spread_max", "method.gate")
    rho = gate.rank_correlation_min
    if rho is not None and not -1 <= rho <= 1:
        raise _wrong(f"gate.rank_correlation_min is between -1 and 1, got {rho}", "method.gate")
    return gate


def _check_ranges(method: Method) -> None:
    limits = f"is between 0 and {LARGEST:g}"
    rate = f"is above 0 and at most {LARGEST:g}"
    for key, good, sentence in (
        ("width", 1 <= method.width <= MAX_WIDTH, f"is between 1 and {MAX_WIDTH}"),
        ("alpha", 0 <= method.alpha <= 1, "is between 0 and 1"),
        ("learning_rate", 0 < method.learning_rate <= LARGEST, rate),
        ("weight_decay", 0 <= method.weight_decay <= LARGEST, limits),
        ("kl_weight", 0 <= method.kl_weight <= LARGEST, limits),
        (
            "max_grad_norm",
            method.max_grad_norm is None or 0 < method.max_grad_norm < math.inf,
            "is a positive number, or null to switch clipping off",
        ),
        (
            "replay_groups",
            0 <= method.replay_groups <= MAX_REPLAY,
            f"is between 0 and {MAX_REPLAY}",
        ),
        ("audit_rate", 0 <= method.audit_rate <= 1, "is between 0 and 1"),
        ("judge_share", 0 <= method.judge_share <= 1, "is between 0 and 1"),
        ("seed", 0 <= method.seed < 2**53, "is between 0 and 2**53 - 1"),
    ):
        if not good:
            raise _wrong(f"{key} {sentence}, got {getattr(method, key)}", "method")


def _check_controls(given: object) -> None:
    if not isinstance(given, list):
        raise invalid('controls is a list of "shuffled", "backbone" and "none"', "method")
    names = cast("list[object]", given)
    for place, name in enumerate(names):
        require_choice(f"method.controls[{place}]", name, CONTROLS)
    if len(set(names)) < len(names):
        raise _wrong(f"controls names each once, got {', '.join(map(str, names))}", "method")


def _known(values: Mapping[str, Any], kind: type[Any], path: str) -> None:
    names = {one.name for one in fields(kind)}
    for key in values:
        if key not in names:
            raise invalid(f"{path}.{key} is not a key of this request", f"{path}.{key}")


def _object(given: object, path: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise must(path, "must be an object", given)
    return cast("Mapping[str, Any]", given)


def _number(value: object, path: str, *, whole: bool = False) -> float:
    if not isinstance(value, int | float):
        raise must(path, "must be a whole number" if whole else "must be a number", value)
    if not whole:
        return float(value)
    if value != int(value):
        raise must(path, "must be a whole number", value)
    return int(value)


def _wrong(sentence: str, path: str) -> Problem:
    return invalid(f"{path} is not right: {sentence}", path)
