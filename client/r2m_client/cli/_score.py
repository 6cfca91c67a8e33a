"""`r2m score`: rewards of texts, from the command line or from JSONL."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import islice

import click

from r2m_client._results import Score, ScoreResult
from r2m_client.cli import _texts
from r2m_client.cli._common import Progress, connected, server_options, show_json

LINES = """\b
A line in is one of these, with "id", "group" and "finish_reason" as you like:
  {"prompt": "...", "response": "...", "format"?: "chat" or "raw",
   and of raw "special_tokens"?: false (none), "truncation"?: "left" or "right"}
  {"messages": [{"role": "user", "content": "..."}, ...], "tools"?: [...]}
  {"token_ids": [1, 2, 3]}
"""
ALSO = ("tokens", "states", "truncated", "finish_reason")
"""What a line out has of a score where the score has it."""


@click.command(epilog=LINES)
@click.option("--run", help="Score by this run's head; without it, by the reward model alone.")
@click.option("--head", default="live", show_default=True, help="A number or an alias of the run.")
@click.option("--prompt", help="Score one text; needs --response.")
@click.option("--response", help="Score one text; needs --prompt.")
@click.option("--raw", is_flag=True, help="Prompt + response as they are, without chat template.")
@click.option(
    "--states",
    metavar="FILE",
    help="safetensors with the policy's hidden states, for a run with feedback policy: a tensor "
    "[tokens, width] for each sample, named by its id.",
)
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
    states: str | None,
    url: str,
    timeout: float,
    batch: int,
    *,
    raw: bool,
) -> None:
    """Score texts: one given by options, or JSONL on standard input; JSONL comes out.

    A line out: the id, the reward, the reward model's own, the head, the text's tokens; or the id
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
    failed = total = 0
    with connected(url, timeout) as client, Progress() as progress:
        samples = _texts.samples(lines, _texts.states(states), form=form)
        named: int | str = head
        while taken := list(islice(samples, batch)):
            result = client.score(taken, run=run, head=named)
            if result.head is not None:
                named = result.head
            for one in result.scores:
                show_json(_line(one, result))
                failed += one.error is not None
            total += len(result.scores)
            progress.show(f"{total} scored, {failed} without a reward")
    if failed:
        raise click.ClickException(f"{failed} of {total} samples have no reward")


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
    return line | {key: getattr(score, key) for key in ALSO if getattr(score, key) is not None}
