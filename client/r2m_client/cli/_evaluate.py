"""`r2m evaluate`: how often heads prefer what they should, on preferences from JSONL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from r2m_client._samples import Pair, Sample
from r2m_client.cli import _texts
from r2m_client.cli._common import (
    Progress,
    connected,
    json_option,
    server_options,
    show_json,
    table,
)
from r2m_client.cli._preferences import Judged, accuracy, ties_score

if TYPE_CHECKING:
    from r2m_client._client import Client
    from r2m_client._errors import ServerError
    from r2m_client._results import Accuracy
    from r2m_client.cli._texts import Choice

EXAMPLES = """\b
Examples:
  r2m evaluate my-run pairs.jsonl --head live --head 0
  r2m evaluate my-run pairs.jsonl --states states.safetensors --json
  r2m evaluate --vanilla reward-bench.jsonl --by subset
"""

TIES = "ties"
"""The value of `subset`, in lower case, that RewardBench 2 scores by a rule of its own."""


@click.command(epilog=EXAMPLES)
@click.argument("run", required=False)
@click.argument("file", default="-")
@click.option(
    "--vanilla",
    is_flag=True,
    help="Judge the reward model itself; no RUN is given then.",
)
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
    "named ID/chosen and ID/rejected (in lists ID/chosen/0, …), [tokens, width].",
)
@click.option("--by", metavar="KEY", help="Also the accuracy for each value of a key, as subset.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Lines of one call.",
)
@server_options
@json_option
def evaluate(
    run: str | None,
    file: str,
    heads: tuple[str, ...],
    states: str | None,
    by: str | None,
    batch: int,
    url: str,
    timeout: float,
    *,
    vanilla: bool,
    as_json: bool,
) -> None:
    """Accuracy of heads of RUN on the preferences of FILE, or of standard input.

    A line: {"prompt": "...", "chosen": "...", "rejected": "...", "id"?: "...", "format"?: "chat" or
    "raw"}. prompt, chosen and rejected may be lists of turns, and "tools" may be given. chosen and
    rejected may be lists of such completions: one right of n, or several right ones. Rows of
    RewardBench and RewardBench 2 are such lines; other keys are ignored, and counted.

    One right of n counts where its reward is the highest (shared with k - 1 others: 1/k), several
    right ones count where each is above every wrong one; rows whose subset is Ties have RewardBench
    2's score for it, too.

    All heads, and the frozen reward model, are judged on the same rows; a row that cannot be
    scored is told and left out. Exit code 1 if there was one.
    """
    if vanilla:
        if heads or states or (run is not None and file != "-"):
            raise click.UsageError("--vanilla takes FILE alone: no RUN, no --head, no --states")
        run, file = None, run or file
    elif run is None:
        raise click.UsageError("name a RUN, or judge the reward model itself with --vanilla")
    with connected(url, timeout) as client, Progress() as progress:
        if run is not None and states is None and client.run(run).feedback == "policy":
            raise ValueError(
                f"run {run} attends to the policy's hidden states (feedback policy), and there are "
                "none: give them with --states FILE, judge the reward model itself with --vanilla, "
                "or a run with feedback backbone or none"
            )
        rows = _rows(file, states, by)
        outcome = Outcome()
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            if run is None:
                _judge_vanilla(client, part, outcome)
            else:
                _judge(client, run, heads, part, outcome)
            progress.show(f"{start + len(part)} of {len(rows)} rows judged")
    parts = _parts(outcome, by)
    if as_json:
        _print_json(run, by, parts, outcome)
    else:
        _print_table(by, parts)
    for one in outcome.errors:
        click.echo(f"{one.name}: {one.error}", err=True)
    if outcome.errors:
        left_out = len(rows) - len(outcome.rows)
        raise click.ClickException(f"{left_out} of {len(rows)} rows left out")


@dataclass(frozen=True, slots=True)
class Failure:
    """A completion without a reward: its name, its row's, and why."""

    name: str
    row: str
    error: ServerError


@dataclass(slots=True)
class Outcome:
    """What came of the rows so far.

    Attributes:
        heads: their numbers, fixed by the first call.
        rows: those that could be judged.
        judged: for each head, and None for the reward model, the same rows with their rewards.
        errors: of the rows that are left out.
    """

    heads: list[int] = field(default_factory=list[int])
    rows: list[Choice] = field(default_factory=list["Choice"])
    judged: dict[int | None, list[Judged]] = field(default_factory=lambda: {None: []})
    errors: list[Failure] = field(default_factory=list[Failure])


def _rows(file: str, states: str | None, by: str | None) -> list[Choice]:
    ignored = Counter[str]()
    also = tuple(dict.fromkeys(("subset", by))) if by is not None else ("subset",)
    try:
        with click.open_file(file) as lines:
            rows = list(_texts.choices(lines, _texts.states(states), ignored, also))
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from None
    if not rows:
        raise ValueError("no pairs: a line is prompt, chosen and rejected, as JSON")
    if by != "subset":
        ignored.update("subset" for row in rows if "subset" in row.values)
    if by is not None:
        for row in rows:
            if by not in row.values:
                raise ValueError(f"line {row.line} has no key {by!r}, which --by names")
    _texts.show_ignored(ignored)
    click.echo(f"judging {len(rows)} rows", err=True)
    return rows


def _judge_vanilla(client: Client, rows: Sequence[Choice], outcome: Outcome) -> None:
    """Rewards by the reward model itself."""
    names = [sample.id for row in rows for sample in (*row.chosen, *row.rejected)]
    samples = [sample for row in rows for sample in (*row.chosen, *row.rejected)]
    # Rows may share an id; the calls' ids are numbers.
    result = client.score([replace(one, id=str(n)) for n, one in enumerate(samples)])
    scores = iter(zip(names, result.scores, strict=True))
    for row in rows:
        taken = [next(scores) for _ in (*row.chosen, *row.rejected)]
        failed = [Failure(name, row.name, s.error) for name, s in taken if s.error is not None]
        outcome.errors += failed
        if not failed:
            rewards = [s.vanilla_reward for _, s in taken if s.vanilla_reward is not None]
            assert len(rewards) == len(taken), "a score has a reward or an error"
            split = len(row.chosen)
            outcome.rows.append(row)
            outcome.judged[None].append(Judged(row.name, rewards[:split], rewards[split:]))


def _judge(
    client: Client, run: str, heads: Sequence[str], rows: Sequence[Choice], outcome: Outcome
) -> None:
    """Rewards by heads of a run, from the margins of pairs: such calls leave nothing in the run."""
    compared = [(place, pair) for place, row in enumerate(rows) for pair in _compared(row)]
    pairs = [
        Pair(str(n), replace(chosen, id=f"{n}/chosen"), replace(rejected, id=f"{n}/rejected"))
        for n, (_, (chosen, rejected)) in enumerate(compared)
    ]
    result = client.evaluate(run, pairs, heads=outcome.heads or heads or ("live",), margins=True)
    outcome.heads = [int(one.head or 0) for one in result.heads]
    failed_pairs, failed_rows = set[int](), set[int]()
    named = dict[str, Failure]()  # a completion is in several pairs, and fails once
    for one in result.errors:
        number = int(str(one.group))
        place, (chosen, rejected) = compared[number]
        name = (chosen if one.id.endswith("/chosen") else rejected).id
        named.setdefault(f"{place}/{name}", Failure(name, rows[place].name, one.error))
        failed_pairs.add(number)
        failed_rows.add(place)
    outcome.errors += named.values()
    outcome.rows += [row for place, row in enumerate(rows) if place not in failed_rows]
    for head, found in zip([*outcome.heads, None], [*result.heads, result.vanilla], strict=True):
        margins = dict(
            zip((n for n in range(len(pairs)) if n not in failed_pairs), found.margins, strict=True)
        )
        by_row: dict[int, list[float]] = {}
        for number, (place, _) in enumerate(compared):
            if place not in failed_rows:
                by_row.setdefault(place, []).append(margins[number])
        judged = outcome.judged.setdefault(head, [])
        judged += [_from_margins(rows[place], values) for place, values in by_row.items()]


def _compared(row: Choice) -> Iterator[tuple[Sample, Sample]]:
    """The pairs whose margins give a row's rewards: each completion once against one of two."""
    first, against = row.chosen[0], row.rejected[0]
    yield from ((first, rejected) for rejected in row.rejected)
    yield from ((chosen, against) for chosen in row.chosen[1:])


def _from_margins(row: Choice, margins: Sequence[float]) -> Judged:
    """Rewards relative to the first chosen completion's."""
    split = len(row.rejected)
    rejected = [-margin for margin in margins[:split]]
    chosen = [0.0, *(margin + rejected[0] for margin in margins[split:])]
    return Judged(row.name, chosen, rejected)


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the rows: those of one value, or all.

    Attributes:
        value: of the key that rows are divided by; None: all rows.
        rows: how many.
        pairs: each of them is one chosen and one rejected completion.
        heads, vanilla: accuracies.
        ties: RewardBench 2's score for the subset Ties, of each head; None: the reward model.
    """

    value: str | None
    rows: int
    pairs: bool
    heads: list[Accuracy]
    vanilla: Accuracy
    ties: dict[int | None, float]


def _parts(outcome: Outcome, by: str | None) -> list[Part]:
    places: dict[str | None, list[int]] = {}
    if by is not None:
        for place, row in enumerate(outcome.rows):
            places.setdefault(str(row.values[by]), []).append(place)
    whole = list(range(len(outcome.rows)))
    return [_part(outcome, value, some) for value, some in [*places.items(), (None, whole)]]


def _part(outcome: Outcome, value: str | None, places: Sequence[int]) -> Part:
    judged = {head: [rows[place] for place in places] for head, rows in outcome.judged.items()}
    first = judged[outcome.heads[0]] if outcome.heads else None
    ties = {place for place in places if _is_ties(outcome.rows[place])}
    scores = {
        head: ties_score(rows[place] for place in places if place in ties)
        for head, rows in outcome.judged.items()
    }
    return Part(
        value=value,
        rows=len(places),
        pairs=all(
            len(outcome.rows[place].chosen) + len(outcome.rows[place].rejected) == 2
            for place in places
        ),
        heads=[
            accuracy(judged[head], head, first if n else None)
            for n, head in enumerate(outcome.heads)
        ],
        vanilla=accuracy(judged[None], None, first),
        ties={head: score for head, score in scores.items() if score is not None},
    )


def _is_ties(row: Choice) -> bool:
    return str(row.values.get("subset", "")).lower() == TIES


def _print_json(run: str | None, by: str | None, parts: Sequence[Part], outcome: Outcome) -> None:
    found: dict[str, Any] = {"run": run} | _as_json(parts[-1])
    if by is not None:
        found["by"] = {by: {str(part.value): _as_json(part) for part in parts[:-1]}}
    found["errors"] = [
        {"id": one.name, "pair": one.row, "code": one.error.code, "message": str(one.error)}
        for one in outcome.errors
    ]
    show_json(found)


def _as_json(part: Part) -> dict[str, Any]:
    def shown(one: Accuracy) -> dict[str, Any]:
        values = asdict(one)
        del values["margins"]
        return values | ({"ties_score": part.ties[one.head]} if one.head in part.ties else {})

    return {
        "pairs": part.rows,
        "heads": [shown(one) for one in part.heads],
        "vanilla": shown(part.vanilla),
    }


def _print_table(by: str | None, parts: Sequence[Part]) -> None:
    header = ("HEAD", "ACCURACY", "95 %", "TIES", "BETTER", "WORSE", "P")
    if by is None:
        lines = _lines(parts[0])
    else:
        header = (by.upper(), "ROWS", *header)
        lines = [
            ("all" if part.value is None else part.value, str(part.rows), *line)
            for part in parts
            for line in _lines(part)
        ]
    click.echo(table(header, lines))
    whole = parts[-1]
    for head, score in whole.ties.items():
        name = "vanilla" if head is None else f"head {head}"
        click.echo(f"RewardBench 2's score for Ties: {score:.3f} ({name})")
    kind = "pairs" if whole.pairs else "rows"
    compared = f"; better, worse and p: against head {whole.heads[0].head}" if whole.heads else ""
    click.echo(f"{whole.rows} {kind}{compared}")


def _lines(part: Part) -> list[tuple[str, ...]]:
    return [*(_line(str(one.head), one) for one in part.heads), _line("vanilla", part.vanilla)]


def _line(name: str, one: Accuracy) -> tuple[str, ...]:
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
