"""`r2m doctor`: what would stop the server, and how to mend it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from r2m_service.cli._flags import WIDTH, setting_flags
from r2m_service.sources import Given, Origin, SettingsError, collect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r2m_service.doctor import Finding, Line

HELP = """Check what `r2m serve` needs, with the same flags: a line a check, and how to mend it.

Looks at packages, device, memory, model, registry, heads, ports and clock. Leaves everything as it
is, but for --repair. Exit code 1 where something would stop the server; warnings alone are 0.

\b
r2m doctor --model ./my-reward-model
r2m doctor --config r2m.toml --no-model --json
r2m doctor --config r2m.toml --no-model --repair    # the server stopped, a copy saved
"""
DEEP = "Read every file of every head and compare its hash; without it, sizes alone are compared."
REPAIR = (
    "Mend what is wrong with heads: a run whose live head is lost falls back to its newest whole "
    "ancestor, files that nothing needs are removed. Implies --deep. The server must be stopped."
)


@click.command(help=HELP, context_settings=WIDTH)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of lines.")
@click.option("--no-model", is_flag=True, help="Do not load the model: seconds, not minutes.")
@click.option("--deep", is_flag=True, help=DEEP)
@click.option("--repair", is_flag=True, help=REPAIR)
@setting_flags
def doctor(
    file: str | None, *, as_json: bool, no_model: bool, deep: bool, repair: bool, **flags: Any
) -> None:
    """Check what would stop the server."""
    progress = _Progress()
    findings: list[Finding] = []
    heads: list[Line] = []
    how = {"load_model": not no_model, "deep": deep, "repair": repair, "heads": heads}
    for finding in _findings(flags, file, progress, how):
        findings.append(finding)
        if not as_json:
            progress.clear()
            click.echo(_line(finding))
    progress.clear()
    levels = [str(finding.level) for finding in findings]
    problems, warnings = levels.count("problem"), levels.count("warning")
    if as_json:
        found = [asdict(finding) for finding in findings]
        answer = {
            "ok": problems == 0,
            "findings": found,
            "heads": [asdict(line) for line in heads],
        }
        click.echo(json.dumps(answer, ensure_ascii=False, indent=1))
    else:
        if heads:
            click.echo(f"\n{_table(heads, repair=repair)}\n")
        would = "r2m serve would fail" if problems else "nothing would stop r2m serve"
        click.echo(f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}: {would}")
    if problems:
        sys.exit(1)


def _findings(
    flags: dict[str, Any], file: str | None, progress: _Progress, how: dict[str, Any]
) -> Iterator[Finding]:
    # Not at the top: `r2m config` and `r2m serve` need none of it.
    from r2m_service.doctor import examine, ok, problem

    try:
        given = collect(flags, file)
        settings = given.settings()
    except SettingsError as error:
        # The other checks would be about a server that nobody asked for.
        yield problem("settings", str(error), "`r2m config --help` lists the settings")
        return
    yield ok("settings", _origins(given))
    yield from examine(settings, say=progress.show, **how)


def _origins(given: Given) -> str:
    counts = [
        f"{list(given.origins.values()).count(origin)} from the {words}"
        for origin, words in (
            (Origin.FLAG, "flags"),
            (Origin.ENVIRONMENT, "environment"),
            (Origin.FILE, f"file {given.file}"),
        )
        if origin in given.origins.values()
    ]
    return f"{', '.join(counts)}, the others are defaults (see `r2m config`)"


class _Progress:
    """One line on a terminal that says what is being done; nothing anywhere else."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self._live:
            click.echo(f"\r\x1b[K… {text}", err=True, nl=False)

    def clear(self) -> None:
        if self._live:
            click.echo("\r\x1b[K", err=True, nl=False)


def _line(finding: Finding) -> str:
    mend = f"; to mend it: {finding.mend}" if finding.mend else ""
    # What a library said may hold line breaks; a finding is one line.
    text = " ".join(f"{finding.found}{mend}".split())
    return f"{finding.level:<7}  {finding.check:<13}  {text}"


def _table(heads: list[Line], *, repair: bool) -> str:
    lines = [("RUN", "HEAD", "WHAT", "FOUND", "DONE" if repair else "WITH --repair")]
    lines += [
        (one.run, "" if one.head is None else str(one.head), one.what, one.found, one.repair)
        for one in heads
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(n) for cell, n in zip(line, widths, strict=False)), line[4]])
        for line in lines
    )


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
