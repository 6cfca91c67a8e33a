"""What the commands share: the server's address, errors in one line, tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from r2m_client._client import Client
from r2m_client._errors import R2MError

DEFAULT_URL = "http://127.0.0.1:8080"


OF_CLIENT = "r2m_client"
"""Where the context keeps what goes to the client: no command looks at it."""


def _kept(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.meta.setdefault(OF_CLIENT, {})[option.name] = value


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --url and --timeout, and what `connected` asks for: --key and the files for TLS."""
    for flag, metavar, help in (
        (
            "--cert-key",
            "FILE",
            "Its private key, where it is not in the same file [env R2M_CERT_KEY]",
        ),
        ("--cert", "FILE", "Certificate of this client, if the server wants one [env R2M_CERT]"),
        ("--ca", "FILE", "CA of the server's certificate, if the system has it not [env R2M_CA]"),
        ("--key", "KEY", "API key; seen by others on this machine, unlike [env R2M_API_KEY]"),
    ):
        command = click.option(
            flag, metavar=metavar, help=help, expose_value=False, callback=_kept
        )(command)
    command = click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="For one call; a server that does not answer is waited for until then.",
    )(command)
    return click.option(
        "--url",
        envvar="R2M_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        help="http://, https://, grpc:// or grpcs://HOST:PORT of the server.",
    )(command)


json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


@contextmanager
def connected(url: str, timeout: float) -> Generator[Client]:
    """A client; what fails in the block becomes one line on stderr and exit code 1."""
    try:
        with Client(url, timeout=timeout, **_for_client()) as client:
            yield client
    except (R2MError, ValueError) as error:
        raise click.ClickException(" ".join(str(error).split())) from None


def _for_client() -> dict[str, Any]:
    given: dict[str, str] = click.get_current_context().meta.get(OF_CLIENT, {})
    cert, key = given.get("cert"), given.get("cert_key")
    if key is not None and cert is None:
        raise ValueError("--cert-key needs --cert")
    pair = (cert, key) if cert is not None and key is not None else cert
    return {"api_key": given.get("key"), "ca": given.get("ca"), "cert": pair}


class Progress:
    """One line on standard error that is written over, where only a person looks at it.

    Silent where standard error is no terminal, or standard output is the same one.
    """

    def __init__(self) -> None:
        self._watched = sys.stderr.isatty() and not sys.stdout.isatty()
        self._shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            click.echo(err=True)

    def show(self, words: str) -> None:
        """Write over what was there."""
        if self._watched:
            self._shown = True
            click.echo(f"\r{words}", err=True, nl=False)


def show_json(value: object) -> None:
    """Print a value as JSON in one line."""
    click.echo(json.dumps(value, ensure_ascii=False))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, as wide as their widest cell."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
