"""`r2m evaluate`: how often heads prefer what they should, on pairs from JSONL."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

import click

from r2m_client.cli import _texts
from r2m_client.cli._common import connected, json_option, server_options, show_json, table

if TYPE_CHECKING:
    from r2m_client._results import Accuracy

EXAMPLES = """\b
Examples:
  r2m evaluate my-run pairs.jsonl --head live --head 0
  r2m evaluate my-run pairs.jsonl --states states.safetensors --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("run")
@click.argument("file", type=click.File(), default="-")
@click.option(
    "--head",
    "heads",
    multiple=True,
    metavar="HEAD",
    help="A number or an alias; several are compared with the first. Default: live.",
)
@click.option(
    "--states",
    metavar="FILE",
    help="safetensors with the policy's hidden states, for a run with feedback policy: tensors "
    "named ID/chosen and ID/rejected, [tokens, width].",
)
@server_options
@json_option
def evaluate(
    run: str,
    file: TextIO,
    heads: tuple[str, ...],
    states: str | None,
    url: str,
    timeout: float,
    *,
    as_json: bool,
) -> None:
    """Accuracy of heads of RUN on the preference pairs of FILE, or of standard input.

    A line: {"prompt": "...", "chosen": "...", "rejected": "...", "id"?: "...", "format"?: "chat" or
    "raw"}. Or chosen and rejected are lists of turns; then prompt is a list of the turns before
    them, or absent, and "tools" may be given.

    All heads, and the frozen reward model, are judged on the same pairs; a pair that cannot be
    scored is told and left out. Exit code 1 if there was one.
    """
    with connected(url, timeout) as client:
        pairs = list(_texts.pairs(file, _texts.states(states)))
        if not pairs:
            raise click.ClickException("no pairs: a line is prompt, chosen and rejected, as JSON")
        click.echo(f"judging {len(pairs)} pairs", err=True)
        result = client.evaluate(run, pairs, heads=heads or ("live",))
    if as_json:
        found = asdict(result)
        found["errors"] = [
            {"id": one.id, "pair": one.group, "code": one.error.code, "message": str(one.error)}
            for one in result.errors
        ]
        show_json(found)
    else:
        rows = [_row(str(one.head), one) for one in result.heads]
        rows.append(_row("vanilla", result.vanilla))
        header = ("HEAD", "ACCURACY", "95 %", "TIES", "BETTER", "WORSE", "P")
        click.echo(table(header, rows))
        click.echo(
            f"{result.pairs} pairs; better, worse and p: against head {result.heads[0].head}"
        )
    for one in result.errors:
        click.echo(f"{one.id}: {one.error}", err=True)
    if result.errors:
        raise click.ClickException(f"{len(pairs) - result.pairs} of {len(pairs)} pairs left out")


def _row(name: str, one: Accuracy) -> tuple[str, ...]:
    def shown(value: float | None, form: str = "") -> str:
        return "-" if value is None else format(value, form)

    return (
        name,
        f"{one.accuracy:.3f}",
        f"{one.low:.3f} to {one.high:.3f}",
        str(one.ties),
        shown(one.better),
        shown(one.worse),
        shown(one.p_value, ".3f"),
    )
