"""`r2m anchors`: the held-out pairs that judge a run's candidates."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

import click

from r2m_client.cli._common import connected, json_option, server_options, show_json
from r2m_client.cli._texts import pairs, show_ignored

if TYPE_CHECKING:
    from r2m_client._label_results import AnchorsInfo

EXAMPLES = """\b
Examples:
  r2m anchors put my-run gold.jsonl --reason "three people agreed on each"
  r2m anchors show my-run
"""


@click.group(epilog=EXAMPLES)
def anchors() -> None:
    """Held-out gold pairs that judge a run's candidates."""


@anchors.command()
@click.argument("run")
@click.argument("file", type=click.File(), default="-")
@click.option("--reason", help="Kept in the audit trail.")
@server_options
def put(run: str, file: TextIO, reason: str | None, url: str, timeout: float) -> None:
    """Make the pairs of FILE, or standard input, the ones that judge RUN's candidates.

    A line: {"prompt": "...", "chosen": "...", "rejected": "...", "id"?: "...", "format"?: "chat"
    or "raw"}; or lists of turns, as `r2m evaluate` takes them. The whole set: it replaces the one
    before. Other keys are ignored.
    """
    ignored = Counter[str]()
    with connected(url, timeout) as client:
        found = client.put_anchors(run, pairs(file, ignored), reason=reason)
    show_ignored(ignored)
    _show(found)


@anchors.command()
@click.argument("run")
@server_options
@json_option
def show(run: str, url: str, timeout: float, *, as_json: bool) -> None:
    """Show the set that judges RUN's candidates, and when it is due."""
    with connected(url, timeout) as client:
        found = client.anchors(run)
    if as_json:
        show_json(asdict(found))
    else:
        _show(found)


def _show(found: AnchorsInfo) -> None:
    due = "never (gate.anchors_every is off)" if found.next_step is None else f"{found.next_step}"
    click.echo(
        f"set {found.set} of {found.run}: {found.pairs} pairs, {found.looks} looks so far, "
        f"due at step {due}"
    )
