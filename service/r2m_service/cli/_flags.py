"""One flag a setting, so that flags, environment, file and help cannot drift apart."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from r2m_service.settings import Settings
from r2m_service.sources import FILE_HELP, Given, SettingsError, collect, flag, variable

WIDTH: dict[str, Any] = {"max_content_width": 100}


def setting_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config and a flag for every setting."""
    for name, field in reversed(Settings.model_fields.items()):
        text = f"{field.description} [env {variable(name)}]"
        kind = _bare(field)
        if kind is bool:
            # Both ways, so that a flag can win over the environment whatever that says.
            option = click.option(f"{flag(name)}/--no-{flag(name)[2:]}", default=None, help=text)
        else:
            if not field.is_required() and field.default is not None:
                text += f" [default {field.default}]"
            metavar = {int: "N", float: "SECONDS"}.get(kind, name.upper())
            if name.endswith("_share"):
                metavar = "SHARE"
            option = click.option(flag(name), type=str, default=None, metavar=metavar, help=text)
        command = option(command)
    return click.option("--config", "file", metavar="FILE", default=None, help=FILE_HELP)(command)


def collected(flags: dict[str, Any], file: str | None) -> Given:
    """What was given, where from.

    Raises:
        click.ClickException: a name that is no setting, or a file that cannot be read.
    """
    try:
        return collect(flags, file)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def checked(given: Given, **stand_ins: Any) -> Settings:
    """The settings.

    Raises:
        click.ClickException: a value that is wrong or missing.
    """
    try:
        return given.settings(**stand_ins)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def _bare(field: FieldInfo) -> Any:
    kind = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    return kind
