"""`r2m replay`: a journal's rewards recomputed, its aligns run again."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r2m_service.cli._flags import WIDTH

if TYPE_CHECKING:
    from collections.abc import Callable

    from r2m_service.domain.method import MethodSettings
    from r2m_service.replay.aligns import Replayed
    from r2m_service.replay.rewards import Checked

HELP = """Recompute a journal's rewards, and run its aligns again under other settings.

JOURNAL is the folder that `r2m serve --journal` wrote. Heads come from the registry of that
server. With hidden states in full (`--journal-full`) every step is exact; without, its loss is
exact until the replayed head differs from the recorded one, and marked approximate from there on,
and the candidate's drift (SPREAD, RANK) is approximate.

\b
r2m replay ./journal --state ./state
r2m replay ./journal --state ./state --run tldr-7 --set alpha=0 --set learning_rate=1e-5
r2m replay ./journal --state ./state --set gate.spread_max=null --plot replay.png
"""


@click.command(help=HELP, context_settings=WIDTH)
@click.argument("journal", type=click.Path(path_type=Path))
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=Path("r2m-state"),
    show_default=True,
    help="Folder of the embedded registry and the heads.",
)
@click.option("--registry", help="Database URL instead.")
@click.option("--blobs", help="fsspec URL of the heads' files instead.")
@click.option("--run", help="This run alone.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="A method setting.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw losses and drift to a file.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
def replay(
    journal: Path,
    state: Path,
    registry: str | None,
    blobs: str | None,
    run: str | None,
    changes: tuple[str, ...],
    plot: Path | None,
    *,
    as_json: bool,
) -> None:
    """Look back at a journal."""
    # Heavy: torch and pyarrow, only once the command is called.
    from r2m.errors import Problem

    change = _change(changes)
    try:
        from r2m_service.replay.session import Session

        session = Session(journal, state=state, registry=registry, blobs=blobs, run=run)
        checked = session.rewards()
        steps = session.aligns(change, say=_say)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"`r2m replay` needs the package {error.name}: pip install 'r2m-serve[journal]'"
        ) from None
    except Problem as problem:
        raise click.ClickException(problem.message) from None
    for sentence in session.cut:
        click.echo(f"warning: {sentence}", err=True)
    if as_json:
        answer = {
            "rewards": [asdict(one) for one in checked],
            "aligns": [asdict(one) for one in steps],
            "cut": session.cut,
        }
        click.echo(json.dumps(answer, indent=1))
    else:
        click.echo(_rewards_table(checked))
        click.echo()
        click.echo(_steps_table(steps, changed=bool(changes)))
    if plot is not None:
        from r2m_service.replay.plot import draw

        draw(steps, plot)
        click.echo(f"drawn to {plot}", err=True)
    if any(one.problem is None and one.exact < one.samples for one in checked):
        sys.exit(1 if any(one.largest > 1e-5 for one in checked) else 0)


def _change(given: tuple[str, ...]) -> Callable[[MethodSettings], MethodSettings]:
    wanted: dict[str, Any] = {}
    for one in given:
        key, equals, text = one.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes KEY=VALUE, got {one!r}")
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text
        into = wanted
        *above, last = key.split(".")
        for name in above:
            into = into.setdefault(name, {})
        into[last] = value

    def change(recorded: MethodSettings) -> MethodSettings:
        from r2m.errors import Problem
        from r2m_service.replay.session import changed

        try:
            return changed(recorded, wanted)
        except Problem as problem:
            raise click.UsageError(f"--set: {problem.message}") from None

    return change


def _rewards_table(checked: list[Checked]) -> str:
    lines = [f"{'RUN':20} {'HEAD':>5} {'REWARDS':>8} {'EXACT':>8} {'LARGEST DIFFERENCE':>20}"]
    for one in checked:
        told = one.problem or f"{one.exact:>8} {one.largest:>20.3g}"
        lines.append(f"{one.run[:20]:20} {one.head:>5} {one.samples:>8} {told}")
    return "\n".join(lines) if checked else "no rewards are recorded"


def _steps_table(steps: list[Replayed], *, changed: bool) -> str:
    if not steps:
        return "no aligns are recorded"
    now = "NOW" if changed else "AGAIN"
    lines = [
        f"{'RUN':20} {'BRANCH':8} {'STEP':>5} {'RECORDED':>22} {now:>22} {'SPREAD':>7} {'RANK':>6}"
    ]
    for one in steps:
        before = f"{_number(one.recorded_loss)} {one.recorded_verdict}"
        after = f"{_number(one.loss)} {one.verdict}"
        lines.append(
            f"{one.run[:20]:20} {one.branch[:8]:8} {one.step:>5} {before:>22} {after:>22} "
            f"{_number(one.spread_ratio, 3):>7} {_number(one.rank_correlation, 3):>6}"
            + ("" if one.exact else "  approximate")
        )
    if any(not one.exact for one in steps):
        lines.append("approximate: c and j are the recorded heads', or a step before is missing")
    return "\n".join(lines)


def _number(value: float | None, digits: int = 6) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _say(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K… {text}", err=True, nl=False)
