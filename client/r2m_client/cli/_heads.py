"""`r2m heads`: a run's versions."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path

import click

from r2m_client.cli._common import connected, json_option, server_options, show_json, table
from r2m_client.cli._controls import show_controls
from r2m_client.cli._diff import facts, lineage, weights
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
                if name != "controls":
                    click.echo(f"{'metrics.' + name:22} {metric}")
        elif value not in (None, "", ()):
            text = ", ".join(found.aliases) if item.name == "aliases" else str(value)
            click.echo(f"{item.name:22} {text}")
    show_controls(found.metrics.get("controls"))


@heads.command()
@click.argument("run")
@click.argument("a")
@click.argument("b")
@server_options
@json_option
def diff(run: str, a: str, b: str, url: str, timeout: float, *, as_json: bool) -> None:
    """Show what changed between versions A and B (numbers or aliases) of RUN.

    How they are related, what their aligns measured where it differs, and how far each tensor of
    the weights moved: relative to its norm in A, and the cosine of the two.
    """
    with connected(url, timeout) as client:
        first, second = client.head(run, a), client.head(run, b)
        related = lineage(client.heads(run), first.head, second.head)
        rows = weights(client.head_weights(run, first.head), client.head_weights(run, second.head))
    differing = facts(first, second)
    if as_json:
        show_json(
            {
                "a": first.head,
                "b": second.head,
                "lineage": related,
                "facts": {name: [ours, theirs] for name, ours, theirs in differing},
                "weights": [
                    {**row, "moved": None if row["moved"] == math.inf else row["moved"]}
                    for row in rows
                ],
            }
        )
        return
    click.echo(related)
    header = ("", str(first.head), str(second.head))
    click.echo(table(header, [(name, _shown(x), _shown(y)) for name, x, y in differing]))
    click.echo()
    header = ("TENSOR", "NORM", "MOVED", "COSINE")
    click.echo(
        table(
            header,
            [
                (
                    row["tensor"],
                    f"{row['norm']:.4g}",
                    "from 0" if row["moved"] == math.inf else f"{100 * row['moved']:.3g} %",
                    "-" if row["cosine"] is None else f"{row['cosine']:.6f}",
                )
                for row in rows
            ],
        )
    )


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


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
