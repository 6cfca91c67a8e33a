"""`r2m runs`: what runs there are, and one of them at large."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from r2m_client.cli._common import connected, json_option, server_options, show_json, table
from r2m_client.cli._controls import show_controls
from r2m_client.cli._diff import flat

if TYPE_CHECKING:
    from r2m_client._results import RunInfo


@click.command()
@click.argument("run", required=False)
@server_options
@json_option
def runs(run: str | None, url: str, timeout: float, *, as_json: bool) -> None:
    """List the runs of a server, or show all of RUN: settings, branches, usage, live numbers.

    DISK is what a run's kept heads take on the server.
    """
    with connected(url, timeout) as client:
        if run is not None:
            _show(client.run(run), as_json=as_json)
            return
        found = client.runs()
    if as_json:
        show_json([asdict(run) for run in found])
        return
    if not found:
        click.echo("no runs yet")
        return
    rows = [
        (
            run.run,
            "archived" if run.archived else run.branch,
            str(run.step),
            str(run.head),
            run.feedback,
            str(run.policy.hidden_size or "-"),
            str(run.method.get("profile", "-")),
            _disk(run),
            run.created_at,
        )
        for run in found
    ]
    header = ("RUN", "BRANCH", "STEP", "HEAD", "FEEDBACK", "WIDTH", "PROFILE", "DISK", "CREATED")
    click.echo(table(header, rows))


def _show(run: RunInfo, *, as_json: bool) -> None:
    values = asdict(run)
    if as_json:
        show_json(values)
        return
    branches = values.pop("branches")
    controls = values["live"].pop("controls", None)
    for name, value in flat(values).items():
        if value not in (None, "", {}, []):
            click.echo(f"{name:34} {value}")
    show_controls(controls)
    click.echo()
    header = ("BRANCH", "STEP", "HEAD", "FROM", "REASON")
    rows = [
        (
            one["branch"],
            str(one["step"]),
            str(one["head"]),
            "-"
            if one["origin_branch"] is None
            else f"head {one['origin_head']}, step {one['origin_step']} of {one['origin_branch']}",
            one["reason"] or "",
        )
        for one in branches
    ]
    click.echo(table(header, rows))


def _disk(run: RunInfo) -> str:
    """What the run's kept heads take; - from an older server."""
    if run.disk is None:
        return "-"
    count = float(run.disk.weights_bytes + run.disk.optimizer_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
