"""What changed between two versions of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from r2m_client.cli._controls import by_name
from r2m_client.cli._tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from r2m.tensors import TensorValue
    from r2m_client._results import HeadInfo

FACTS = ("step", "branch", "t", "omega", "reference", "verdict", "accepted", "parent", "created_at")


def lineage(heads: Iterable[HeadInfo], a: int, b: int) -> str:
    """How two versions are related, in words."""
    parents = {head.head: head.parent for head in heads}

    def line(number: int | None) -> list[int]:
        found: list[int] = []
        while number is not None:
            found.append(number)
            number = parents.get(number)
        return found

    of_a, of_b = line(a), line(b)
    if a == b:
        return "the same version"
    if a in of_b:
        return f"{b} comes from {a}, {_updates(of_b.index(a))} later"
    if b in of_a:
        return f"{a} comes from {b}, {_updates(of_a.index(b))} later"
    common = next((one for one in of_a if one in of_b), None)
    if common is None:
        return "they have no common ancestor"
    return (
        f"both come from {common}: {a} {_updates(of_a.index(common))} later, "
        f"{b} {_updates(of_b.index(common))} later"
    )


def _updates(count: int) -> str:
    return f"{count} update{'' if count == 1 else 's'}"


def facts(a: HeadInfo, b: HeadInfo) -> list[tuple[str, Any, Any]]:
    """What the registry says of both, where it differs; numbers of their aligns too."""
    rows = [(name, getattr(a, name), getattr(b, name)) for name in FACTS]
    ours, theirs = flat(by_name(a.metrics)), flat(by_name(b.metrics))
    rows += [(name, ours.get(name), theirs.get(name)) for name in sorted({*ours, *theirs})]
    return [row for row in rows if row[1] != row[2]]


def flat(metrics: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested values under dotted names."""
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            found |= flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found


def weights(a: bytes, b: bytes) -> list[dict[str, Any]]:
    """Each tensor's change: its norm relative to a's, and the cosine between the two.

    Raises:
        ValueError: the files hold other tensors.
    """
    ours, theirs = tensors(a, "the first head"), tensors(b, "the second head")
    if ours.keys() != theirs.keys() or any(ours[n].shape != theirs[n].shape for n in ours):
        raise ValueError("the two heads have other tensors or shapes: they cannot be compared")
    return [{"tensor": name, **_change(ours[name], theirs[name])} for name in sorted(ours)]


def _change(a: TensorValue, b: TensorValue) -> dict[str, float | None]:
    import numpy as np

    x, y = (np.frombuffer(one.data, "<f4").astype(np.float64) for one in (a, b))
    norm, other = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    moved = float(np.linalg.norm(y - x))
    return {
        "norm": norm,
        "moved": moved / norm if norm else (0.0 if moved == 0 else math.inf),
        "cosine": float(x @ y) / (norm * other) if norm and other else None,
    }
