"""`r2m heads`: a run's versions."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path

import click

from r2m_client.cli._common import connected, json_option, server_options, show_json
from r2m_client.cli._lineage import draw


@click.group()
def heads() -> None:
    """Look at a run's versions, and fetch them."""


@heads.command()
@click.argument("run")
@server_options
@json_option
def log(run: str, url: str, timeout: float, *, as_json: bool) -> None:
    """Draw where each version of RUN comes from, newest first.

    A full circle is an accepted version, an empty one was rejected, undecided or skipped.
    """
    with connected(url, timeout) as client:
        found = client.heads(run)
    if as_json:
        show_json([asdict(head) for head in found])
        return
    for line in draw(found):
        click.echo(line)


@heads.command()
@click.argument("run")
@click.argument("head")
@server_options
@json_option
def show(run: str, head: str, url: str, timeout: float, *, as_json: bool) -> None:
    """Show version HEAD (a number or an alias) of RUN: verdict, metrics, file."""
    with connected(url, timeout) as client:
        found = client.head(run, head)
    if as_json:
        show_json(asdict(found))
        return
    for item in fields(found):
        value = getattr(found, item.name)
        if item.name == "metrics":
            for name, metric in sorted(found.metrics.items()):
                click.echo(f"{'metrics.' + name:22} {metric}")
        elif value not in (None, "", ()):
            text = ", ".join(found.aliases) if item.name == "aliases" else str(value)
            click.echo(f"{item.name:22} {text}")


@heads.command()
@click.argument("run")
@click.argument("head")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Where to; - is standard output. Default: RUN-NUMBER.safetensors.",
)
@server_options
def pull(run: str, head: str, output: str | None, url: str, timeout: float) -> None:
    """Fetch version HEAD (a number or an alias) of RUN as a safetensors file."""
    with connected(url, timeout) as client:
        found = client.head(run, head)
        # By number: the alias may have moved since.
        data = client.head_weights(run, found.head)
    if hashlib.sha256(data).hexdigest() != found.sha256:
        raise click.ClickException(f"the file of head {found.head} does not match its SHA-256")
    if output == "-":
        sys.stdout.buffer.write(data)
        return
    path = Path(output or f"{run}-{found.head}.safetensors")
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)  # a file of this name is whole, or the old one
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error}") from None
    click.echo(f"head {found.head} of {run}: {path} ({len(data)} bytes)", err=True)
