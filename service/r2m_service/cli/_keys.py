"""`r2m keys`: who may call a server, and how far."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from r2m_service.access.errors import AccessError
from r2m_service.access.keyfile import KeyFile
from r2m_service.cli._flags import WIDTH, collected
from r2m_service.domain.access import Key, Scope
from r2m_service.sources import FILE_HELP

HELP = """Make, list and revoke API keys.

They are kept as hashes in a JSON file, which `r2m serve --keys` reads; a running server sees each
change. A key itself is shown once, when it is made.

\b
r2m keys create --keys r2m-keys.json --name trainer --scope align --run tldr-7 --expires 30d
r2m keys list --keys r2m-keys.json
r2m keys revoke --keys r2m-keys.json 1a2b3c4d
"""
CREATE_HELP = """Make a key, and print it: keep it now, for it is nowhere else.

Scopes: score reads and scores; align makes and updates runs too; admin may do everything.
"""
UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def _file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--config", "config", metavar="FILE", default=None, help=FILE_HELP)(
        command
    )
    return click.option(
        "--keys", metavar="FILE", default=None, help="The file of keys [env R2M_KEYS]"
    )(command)


@click.group(help=HELP, context_settings=WIDTH)
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command(help=CREATE_HELP, context_settings=WIDTH)
@_file_options
@click.option("--name", required=True, help="For people: who has it.")
@click.option(
    "--scope",
    type=click.Choice([scope.value for scope in Scope]),
    required=True,
    help="What it may do.",
)
@click.option(
    "--run", "runs", multiple=True, metavar="RUN", help="Bind it to this run. Repeatable."
)
@click.option(
    "--expires",
    metavar="WHEN",
    help="Until when: 30d, 12h, 45m, or a date such as 2027-01-31 (UTC). Default: for good.",
)
def create(
    keys: str | None,
    config: str | None,
    name: str,
    scope: str,
    runs: tuple[str, ...],
    expires: str | None,
) -> None:
    """Make a key."""
    until = None if expires is None else _until(expires)
    file = _file(keys, config)
    try:
        key, text = file.create(name, Scope(scope), runs=runs, expires_at=until)
    except AccessError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"key {key.id} ({key.scope}) is in {file.path}; it is shown this once:", err=True)
    click.echo(text)


@keys.command("list", context_settings=WIDTH)
@_file_options
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def list_keys(keys: str | None, config: str | None, *, as_json: bool) -> None:
    """List all keys, without what opens anything."""
    try:
        found = _file(keys, config).all()
    except AccessError as error:
        raise click.ClickException(str(error)) from None
    rows = [_row(key) for key in found]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    lines = [("ID", "NAME", "SCOPE", "RUNS", "STANDING", "CREATED", "EXPIRES")]
    for row in rows:
        runs = "all" if row["runs"] is None else ",".join(row["runs"])
        lines.append(
            (row["id"], row["name"], row["scope"], runs, row["standing"], row["created"],
             row["expires"] or "never")
        )  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        click.echo("  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip())


@keys.command(context_settings=WIDTH)
@_file_options
@click.argument("id")
def revoke(keys: str | None, config: str | None, id: str) -> None:
    """Let a key open nothing any more; running servers see it at the next call."""
    try:
        key = _file(keys, config).revoke(id)
    except AccessError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"key {key.id} ({key.name}) is revoked")


def _file(given: str | None, config: str | None) -> KeyFile:
    """The file of keys, named as for `r2m serve`."""
    named = collected({"keys": given}, config).values.get("keys")
    if not named:
        raise click.UsageError("which file? Give --keys or R2M_KEYS, as for `r2m serve`")
    if str(named).lstrip().startswith("{"):
        raise click.UsageError(
            "R2M_KEYS holds the keys themselves: change the file that it came from, with --keys"
        )
    return KeyFile(Path(str(named)).expanduser())


def _until(text: str) -> datetime:
    now = datetime.now(UTC).replace(microsecond=0)
    found = re.fullmatch(r"(\d{1,5})([mhd])", text)
    try:
        if found is not None:
            until = now + timedelta(**{UNITS[found[2]]: int(found[1])})
        else:
            until = datetime.fromisoformat(text)
            until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    except ValueError:
        raise click.UsageError(
            f"--expires takes 30d, 12h, 45m or a date such as 2027-01-31, got {text!r}"
        ) from None
    if until <= now:
        raise click.UsageError(f"--expires {text} is in the past")
    return until


def _row(key: Key) -> dict[str, Any]:
    def day(at: datetime | None) -> str | None:
        return None if at is None else f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"

    return {
        "id": key.id,
        "name": key.name,
        "scope": str(key.scope),
        "runs": None if key.runs is None else sorted(key.runs),
        "standing": str(key.standing(datetime.now(UTC))),
        "created": day(key.created_at),
        "expires": day(key.expires_at),
        "revoked": day(key.revoked_at),
    }
