"""The `r2m` command: what needs no torch is here, the rest comes from other packages.

Packages add commands through the entry point group `r2m.commands`. They are loaded when they are
called, not to list them: `r2m --help` must stay fast where a command would import torch, and must
work where one is broken.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import click

from r2m_client.cli._anchors import anchors
from r2m_client.cli._evaluate import evaluate
from r2m_client.cli._heads import heads
from r2m_client.cli._labels import labels
from r2m_client.cli._runs import runs
from r2m_client.cli._score import score
from r2m_client.cli._steering import alias, freeze, rollback, unfreeze

GROUP = "r2m.commands"
NEEDS_SERVICE = (
    "needs the service: pip install 'r2m-serve[service]', in a clone pip install '.[service]'"
)
KNOWN = {
    "config": "Show every setting of the server, and where its value came from.",
    "doctor": "Check what would stop `r2m serve`, and how to mend it.",
    "keys": "Make, list and revoke API keys of a server.",
    "replay": "Recompute a journal's rewards, and re-run its aligns under other settings.",
    "serve": "Serve a reward model over HTTP and gRPC.",
}
"""Short help of commands of ours that are not loaded to be listed."""


def plugins() -> dict[str, EntryPoint]:
    """The commands that installed packages add, by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load(point: EntryPoint) -> click.Command:
    """An added command.

    Raises:
        click.ClickException: it cannot be loaded, in one line.
    """
    try:
        command = point.load()
    except Exception as error:  # whatever another package's import may raise
        if point.module.split(".")[0] == "r2m_service" and isinstance(error, ImportError):
            raise click.ClickException(f"`r2m {point.name}` {NEEDS_SERVICE} ({error})") from None
        raise click.ClickException(
            f"`r2m {point.name}` ({point.value}) cannot be loaded: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(command, click.Command):
        raise click.ClickException(f"`r2m {point.name}` ({point.value}) is no click command")
    return command


class Commands(click.Group):
    """A group whose further commands are loaded when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted({*super().list_commands(ctx), *plugins()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by name, loaded if it is an added one."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        point = plugins().get(cmd_name)
        if point is not None:
            return load(point)
        if cmd_name in KNOWN:
            raise click.ClickException(f"`r2m {cmd_name}` {NEEDS_SERVICE}")
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading the added ones."""
        added = plugins()
        rows: list[tuple[str, str]] = []
        for name in self.list_commands(ctx):
            own = super().get_command(ctx, name)
            if own is not None:
                rows.append((name, own.get_short_help_str(limit=80)))
            else:
                rows.append((name, KNOWN.get(name, f"From {added[name].value}.")))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


EXAMPLES = """\b
Examples:
  r2m runs
  r2m heads log my-run
  r2m score --prompt "Why is the sky blue?" --response "Because ..."
"""


@click.group(cls=Commands, epilog=EXAMPLES, context_settings={"max_content_width": 100})
@click.version_option(package_name="r2m-serve", prog_name="r2m")
def main() -> None:
    """R2M Serve: reward models that learn with the policy.

    Commands that ask a server find it by --url or the variable R2M_URL. config, doctor, keys,
    replay and serve work on the machine at hand, and need the service installed.
    """


OWN = (alias, anchors, evaluate, freeze, heads, labels, rollback, runs, score, unfreeze)
for command in OWN:
    main.add_command(command)
