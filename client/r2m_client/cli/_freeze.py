"""`r2m freeze` and `r2m unfreeze`."""

from __future__ import annotations

import click

from r2m_client.cli._common import connected, server_options


@click.command()
@click.argument("run")
@click.option("--reason", help="Answered by every align, and kept in the audit trail.")
@server_options
def freeze(run: str, reason: str | None, url: str, timeout: float) -> None:
    """Freeze RUN: scoring goes on, aligns are answered and change nothing."""
    with connected(url, timeout) as client:
        click.echo(f"{run} is frozen: {client.freeze(run, reason=reason).frozen}")


@click.command()
@click.argument("run")
@click.option("--reason", help="Kept in the audit trail.")
@server_options
def unfreeze(run: str, reason: str | None, url: str, timeout: float) -> None:
    """Let RUN learn again; rejections and the audited gap's sum start anew."""
    with connected(url, timeout) as client:
        found = client.unfreeze(run, reason=reason)
    click.echo(f"{run} learns again, from step {found.next_step}")
