"""What a run's controls say, as a table, and under names of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from r2m_client.cli._common import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HEADER = ("CONTROL", "VERDICT", "LABELS", "HEAD %", "CONTROL %", "DIFF", "95 %", "NOTE")


def show_controls(controls: Mapping[str, Any] | None) -> None:
    """A table, where there is something to show.

    Args:
        controls: of a head's metrics, or of a run's live numbers.
    """
    if controls and controls.get("arms"):
        click.echo("\nDoes feedback pay? Accuracy on new outside labels, head less control:\n")
        click.echo(table(HEADER, [_row(one) for one in controls["arms"]]))


def by_name(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics with the controls under their names, so that two heads' can be compared."""
    arms: Iterable[dict[str, Any]] = (metrics.get("controls") or {}).get("arms", [])
    named = {one["control"]: {k: v for k, v in one.items() if k != "control"} for one in arms}
    return {**metrics, "controls": named} if named else dict(metrics)


def _row(arm: dict[str, Any]) -> tuple[str, ...]:
    total = arm["total"]

    def percent(key: str, *, sign: bool = False) -> str:
        value = total.get(key)
        return "-" if value is None else f"{100 * value:{'+' if sign else ''}.1f}"

    return (
        arm["control"],
        arm["verdict"].replace("_", " "),
        str(total.get("pairs", 0)),
        percent("head_accuracy"),
        percent("accuracy"),
        percent("difference", sign=True),
        f"{percent('low', sign=True)} to {percent('high', sign=True)}",
        arm.get("note") or "",
    )
