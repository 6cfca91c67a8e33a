"""`r2m labels`: marked samples out to a labelling tool or a judge, their labels back in."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

import click

from r2m_client._samples import Label
from r2m_client.cli._common import connected, server_options, show_json
from r2m_client.cli._jsonl import objects

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = ("id", "grade", "chosen", "rejected", "source")
PAGE = 500


EXAMPLES = """\b
Examples:
  r2m labels export my-run > waiting.jsonl
  r2m labels import my-run labelled.jsonl --source judge-7
"""
LINES = """\b
A line is one of:
  {"id": "q7-a", "grade": 0.8}
  {"chosen": "q9-b", "rejected": "q9-a", "source": "alice"}
"""


@click.group(epilog=EXAMPLES)
def labels() -> None:
    """Outside labels of samples that score marked: out as JSONL, and back in."""


@labels.command("export")
@click.argument("run")
@click.option("--all", "everything", is_flag=True, help="Those that have a label, too.")
@server_options
def export(run: str, url: str, timeout: float, *, everything: bool) -> None:
    """Write RUN's marked samples that wait for a label: a JSON line each.

    A line: id, group, use (train or judge), text, head, reward, vanilla_reward, labels. Give it a
    `grade` (more is better, on a scale that stays the same), or state a pair, and import it.
    """
    after: int | None = 0
    with connected(url, timeout) as client:
        while after is not None:
            page = client.samples(run, after=after, limit=PAGE, waiting=not everything)
            for sample in page.samples:
                show_json(asdict(sample))
            after = page.next


@labels.command("import", epilog=LINES)
@click.argument("run")
@click.argument("file", type=click.File(), default="-")
@click.option("--source", help="Who said it, for lines that do not say so.")
@server_options
def load(run: str, file: TextIO, source: str | None, url: str, timeout: float) -> None:
    """Send labels of RUN's samples from FILE, or standard input: a JSON line each.

    The same label again is fine. Exit code 1 if one was refused.
    """
    found = _labels(file, source)
    new = known = refused = 0
    advice = "ok"
    with connected(url, timeout) as client:
        while batch := list(islice(found, PAGE)):
            result = client.add_labels(run, batch)
            for one in result.labels:
                if one.error is not None:
                    refused += 1
                    click.echo(f"{one.id}: {one.error}", err=True)
                elif one.known:
                    known += 1
                else:
                    new += 1
            advice = result.advice
            click.echo(f"{new + known + refused} sent", err=True)
    click.echo(f"{new} new, {known} known before, {refused} refused; advice: {advice}")
    if refused:
        raise click.ClickException(f"{refused} labels were refused")


def _labels(file: TextIO, source: str | None) -> Iterator[Label]:
    for number, values in objects(file, KEYS):
        graded = isinstance(values.get("grade"), int | float) and "id" in values
        if not graded and not ("chosen" in values and "rejected" in values):
            raise ValueError(f"line {number} is neither id and grade, nor chosen and rejected")
        found: dict[str, Any] = {"source": source, **values}
        yield Label(**found)
