"""`r2m config`: every setting, its value, and where that came from."""

from __future__ import annotations

import json
from typing import Any

import click

from r2m_service.cli._flags import WIDTH, checked, collected, setting_flags
from r2m_service.settings import Settings, shown
from r2m_service.sources import NAMES, Given, Origin, SettingsError

HELP = """Show every setting as `r2m serve` would see it, and where its value came from.

Takes the flags of `r2m serve`; starts nothing. Exit code 1 where the server would refuse them.
"""


@click.command(help=HELP, context_settings=WIDTH)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@setting_flags
def config(file: str | None, *, as_json: bool, **flags: Any) -> None:
    """Show every setting."""
    given = collected(flags, file)
    missing: SettingsError | None = None
    try:
        settings = given.settings()
    except SettingsError as error:
        # A value that is missing leaves the others to be seen; a wrong one does not.
        missing = error
        settings = checked(given, **dict.fromkeys(error.missing, ""))
    rows = _rows(given, settings, missing.missing if missing else ())
    if as_json:
        path = None if given.file is None else str(given.file)
        click.echo(json.dumps({"file": path, "settings": rows}, ensure_ascii=False, indent=1))
    else:
        click.echo(_table(rows))
    if missing is not None:
        raise click.ClickException(str(missing))


def _rows(given: Given, settings: Settings, missing: tuple[str, ...]) -> list[dict[str, Any]]:
    values = settings.model_dump(mode="json")
    rows: list[dict[str, Any]] = []
    for name in NAMES:
        origin = given.origins[name]
        rows.append(
            {
                "setting": name,
                "value": None if name in missing else shown(name, values[name]),
                "from": "missing" if name in missing else str(origin),
                "as": None if origin is Origin.DEFAULT else given.spelled(name),
                "meaning": Settings.model_fields[name].description,
            }
        )
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [("SETTING", "VALUE", "FROM", "MEANING")]
    for row in rows:
        value = "-" if row["value"] is None else str(row["value"])
        if isinstance(row["value"], bool):
            value = value.lower()  # as it is written, in the file and in variables
        lines.append((row["setting"], value, row["as"] or row["from"], row["meaning"]))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(n) for cell, n in zip(line, widths, strict=False)), line[3]])
        for line in lines
    )
