"""`r2m serve`: the command that exists where the service is installed."""

from __future__ import annotations

import asyncio
import logging
import sys
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from r2m_service.settings import Settings

# The mark before the examples keeps click from joining their lines.
HELP = """Serve a reward model over HTTP and gRPC.

\b
r2m serve --model ./my-reward-model
r2m serve --model ./my-causal-lm --head head.safetensors --state ./state
"""


def _flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option a setting, so that flags, environment and help cannot drift apart."""
    for name, field in reversed(Settings.model_fields.items()):
        text = f"{field.description} [env R2M_{name.upper()}]"
        if not field.is_required() and field.default is not None and field.annotation is not bool:
            text += f" [default {field.default}]"
        flag = f"--{name.replace('_', '-')}"
        kind = _bare(field)
        if kind is bool:
            option = click.option(flag, is_flag=True, default=None, help=text)
        else:
            metavar = {int: "N", float: "SECONDS"}.get(kind, name.upper())
            option = click.option(flag, type=str, default=None, metavar=metavar, help=text)
        command = option(command)
    return command


def _bare(field: FieldInfo) -> Any:
    kind = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    return kind


@click.command(help=HELP, context_settings={"max_content_width": 100})
@_flags
def serve(**given: Any) -> None:
    """Serve a reward model until SIGTERM or Ctrl-C."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    try:
        settings = Settings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "-".join(str(part) for part in first["loc"]).replace("_", "-")
        raise click.ClickException(
            f"--{name}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    for chatty in ("alembic", "uvicorn", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Heavy: torch and transformers, only once the flags are known to be good.
    from r2m_service.bootstrap import StartError, run

    try:
        asyncio.run(run(settings, announce=lambda line: click.echo(f"r2m {line}", err=True)))
    except StartError as error:
        raise click.ClickException(str(error)) from None
