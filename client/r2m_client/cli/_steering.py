"""What a person does to a run that learns: `r2m freeze`, `unfreeze`, `rollback` and `alias`."""

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


@click.command()
@click.argument("run")
@click.option("--to", metavar="HEAD", type=click.IntRange(min=0), help="Number of a head.")
@click.option("--to-step", type=click.IntRange(min=0), help="Where that step left off.")
@click.option("--branch", help="Of the step.  [default: the run's current one]")
@click.option("--reason", help="Kept with the new branch, and in the audit trail.")
@server_options
def rollback(
    run: str,
    to: int | None,
    to_step: int | None,
    branch: str | None,
    reason: str | None,
    url: str,
    timeout: float,
) -> None:
    r"""Take RUN back to a head or a step, on a new branch.

    Live, optimizer state and counters go back together; nothing is deleted. Aligns of the branch
    that is left are refused from then on.

    \b
    r2m rollback my-run --to 12 --reason "lengths exploded"
    r2m rollback my-run --to-step 400
    """
    if (to is None) == (to_step is None):
        raise click.UsageError("give either --to or --to-step")
    with connected(url, timeout) as client:
        found = client.rollback(run, to=to, to_step=to_step, branch=branch, reason=reason)
    click.echo(
        f"{run} is on branch {found.branch} now: head {found.head} is live, the next step is "
        f"{found.next_step}"
    )


@click.command()
@click.argument("run")
@click.argument("name")
@click.argument("head", type=click.IntRange(min=0))
@click.option("--expect", type=click.IntRange(min=0), help="Move it only if it points there now.")
@server_options
def alias(run: str, name: str, head: int, expect: int | None, url: str, timeout: float) -> None:
    r"""Point alias NAME of RUN at HEAD: it is kept, with its optimizer state, as long as it does.

    The name `reference` is what candidates are measured against.

    \b
    r2m alias my-run checkpoint-400 57
    """
    with connected(url, timeout) as client:
        found = client.set_alias(run, name, head, expect=expect)
    before = "" if found.previous is None else f", before at {found.previous}"
    click.echo(f"{name} of {run} points at head {found.head}{before}")
