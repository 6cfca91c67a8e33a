"""`r2m runs`: what runs there are."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from r2m_client.cli._common import connected, json_option, server_options, show_json, table

if TYPE_CHECKING:
    from r2m_client._results import RunInfo


@click.command()
@server_options
@json_option
def runs(url: str, timeout: float, *, as_json: bool) -> None:
    """List the runs of a server; DISK is what their kept heads take there."""
    with connected(url, timeout) as client:
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
