"""`r2m score`: rewards of texts, from the command line or from JSONL."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice

import click

from r2m_client._results import Score, ScoreResult
from r2m_client._samples import Sample
from r2m_client.cli._common import connected, server_options, show_json
from r2m_client.cli._jsonl import objects

KEYS = ("id", "prompt", "response", "format", "group")


@click.command()
@click.option("--run", help="Score by this run's head; without it, by the reward model alone.")
@click.option("--head", default="live", show_default=True, help="A number or an alias of the run.")
@click.option("--prompt", help="Score one text; needs --response.")
@click.option("--response", help="Score one text; needs --prompt.")
@click.option("--raw", is_flag=True, help="Prompt + response as they are, without chat template.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Lines of one call.",
)
@server_options
def score(
    run: str | None,
    head: str,
    prompt: str | None,
    response: str | None,
    url: str,
    timeout: float,
    batch: int,
    *,
    raw: bool,
) -> None:
    """Score texts: one given by options, or JSONL on standard input; JSONL comes out.

    A line in: {"prompt": "...", "response": "...", "id"?: "...", "format"?: "chat" or "raw",
    "group"?: "..."}. A line out: the id, the reward, the reward model's own, the head; or the id
    and the error. All lines are scored by the head that scored the first. Exit code 1 if a sample
    has no reward.
    """
    if (prompt is None) != (response is None):
        raise click.UsageError("--prompt and --response go together")
    form = "raw" if raw else "chat"
    if prompt is not None:
        lines: Iterable[str] = [json.dumps({"prompt": prompt, "response": response})]
    else:
        lines = sys.stdin
    samples = _samples(lines, form)
    failed = total = 0
    with connected(url, timeout) as client:
        named: int | str = head
        while taken := list(islice(samples, batch)):
            result = client.score(taken, run=run, head=named)
            if result.head is not None:
                named = result.head
            for one in result.scores:
                show_json(_line(one, result))
                failed += one.error is not None
            total += len(result.scores)
    if failed:
        raise click.ClickException(f"{failed} of {total} samples have no reward")


def _samples(lines: Iterable[str], form: str) -> Iterator[Sample]:
    for number, values in objects(lines, KEYS):
        for key in ("prompt", "response"):
            if not isinstance(values.get(key), str):
                raise ValueError(f"line {number} has no string {key!r}")
        yield Sample(
            id=values.get("id", str(number)),
            prompt=values["prompt"],
            response=values["response"],
            format=values.get("format", form),
            group=values.get("group", ""),
        )


def _line(score: Score, result: ScoreResult) -> dict[str, object]:
    line: dict[str, object] = {"id": score.id}
    if score.error is not None:
        line["error"] = {"code": score.error.code, "message": score.error.message}
        return line
    if score.reward is not None:
        line["reward"] = score.reward
    line["vanilla_reward"] = score.vanilla_reward
    if result.head is not None:
        line["head"] = result.head
    return line
