"""`r2m serve`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import Any

import click

from r2m_service.access.errors import AccessError
from r2m_service.access.opening import open_access
from r2m_service.cli._flags import WIDTH, checked, collected, setting_flags
from r2m_service.logs import configure, take_over

# The mark before the examples keeps click from joining their lines.
HELP = """Serve a reward model over HTTP and gRPC.

\b
r2m serve --model ./my-reward-model
r2m serve --model ./my-causal-lm --head head.safetensors --state ./state
r2m serve --config r2m.toml
"""


@click.command(help=HELP, context_settings=WIDTH)
@setting_flags
def serve(file: str | None, **flags: Any) -> None:
    """Serve a reward model until SIGTERM or Ctrl-C."""
    # As the first process of a container it would ignore a signal that nobody handles, and torch
    # takes its time. From `run` on the server has its own way to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settings = checked(collected(flags, file))
    configure(settings.log_format, settings.log_level, show_content=settings.log_content)
    take_over()
    json = settings.log_format == "json"
    if json:
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of models being loaded are no lines
    if settings.log_content:
        logging.getLogger("r2m").warning("samples' texts are logged (--log-content)")
    try:
        # Before anything listens, or takes its time: whom the server lets in.
        access = open_access(settings)
    except AccessError as error:
        raise _refusal(str(error), json=json) from None
    for serious, note in access.notes:
        level = logging.WARNING if serious else logging.INFO
        logging.getLogger("r2m").log(level, "access: %s", note)

    def announce(line: str) -> None:
        if json:
            logging.getLogger("r2m").info(line)
        else:
            click.echo(f"r2m {line}", err=True)

    # Heavy, from here on: databases' and stores' drivers, then torch and transformers.
    from r2m_service.extras import missing_packages

    missing = missing_packages(settings)
    if missing is not None:
        raise _refusal(str(missing), json=json)
    from r2m_service.bootstrap import StartError, run

    take_over()  # of them, too
    try:
        asyncio.run(run(settings, access, announce=announce))
    except StartError as error:
        raise _refusal(str(error), json=json) from None


def _refusal(why: str, *, json: bool) -> BaseException:
    """How the command ends where the server cannot start: with a line for people, or in the log."""
    if not json:
        return click.ClickException(why)
    logging.getLogger("r2m").error(why)
    return SystemExit(1)
