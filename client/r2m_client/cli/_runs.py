"""`r2m runs`: what runs there are."""

from __future__ import annotations

from dataclasses import asdict

import click

from r2m_client.cli._common import connected, json_option, server_options, show_json, table


@click.command()
@server_options
@json_option
def runs(url: str, timeout: float, *, as_json: bool) -> None:
    """List the runs of a server."""
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
            run.created_at,
        )
        for run in found
    ]
    header = ("RUN", "BRANCH", "STEP", "HEAD", "FEEDBACK", "WIDTH", "PROFILE", "CREATED")
    click.echo(table(header, rows))
