"""What the pages say of the command line exists."""

import pathlib
import re
import tomllib
from importlib.metadata import EntryPoint

import click
import pytest

from lab import __main__ as lab
from lab import gpu
from lab.real import __main__ as real
from r2m_client.cli import KNOWN, main
from r2m_service.settings import Settings
from r2m_service.sources import ELSEWHERE, variable

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
OTHERS = {"--check", "--minutes", "--part", "--tables"}  # of docs/generate.py and of benchmarks
# Of trainers, on their page; of OpenRLHF's and ms-swift's the part before a dot or an underscore.
OF_TRAINERS = {"--apply-chat-template", "--ds", "--remote", "--reward", "--reward-key", "--train"}
OF_TRAINERS |= {"--data", "--rm-type", "--rm-url", "--rlhf", "--external"}
OF_TRAINERS |= {"--policy", "--resume", "--steps"}  # examples/own_loop.py
# Of docker, helm and kubectl, on theirs; and of keys, which are on their way.
OF_DEPLOY = {"--build-arg", "--from-literal", "--no-deps", "--profile", "--reset-then-reuse-values"}
OF_DEPLOY |= {"--reuse-values", "--rm", "--secret", "--set", "--keys", "--name", "--scope"}
# Of docker and helm, on the page of logs and traces.
OF_TRACING = {"--profile", "--reuse-values", "--rm", "--set"}
OF_TESTS = {"R2M_TEST_DATA", "R2M_TEST_DATABASE_URL"}
ADDED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
    "r2m.commands"
]


def commands():
    # By pyproject.toml: what is installed may be older.
    found = {
        name: EntryPoint(name=name, value=value, group="r2m.commands").load()
        for name, value in ADDED.items()
    }
    return {**main.commands, **found}


def flags_of(command):
    own = {flag for one in command.params for flag in [*one.opts, *one.secondary_opts]}
    if isinstance(command, click.Group):
        own |= {flag for one in command.commands.values() for flag in flags_of(one)}
    return own | {"--help", "--version"}


def test_the_entry_points_lead_to_commands_with_help():
    assert set(ADDED) <= set(KNOWN)
    for name in ADDED:
        assert isinstance(commands()[name], click.Command)


def without_scripts(page):
    """The page without shell blocks that tests/docs runs: their flags are curl's and jq's."""
    text = page.read_text()
    if page.name not in ("api.md", "trainers.md"):
        return text
    return re.sub(r"^```bash\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_and_variables_of_a_page_exist(page):
    text = without_scripts(page)
    known = {flag for command in commands().values() for flag in flags_of(command)} | OTHERS
    if page.name == "trainers.md":
        known |= OF_TRAINERS
    if page.name == "evidence.md":
        for parser in (gpu.parser_of_arms(), lab.parser_of_sets(), real.parser_of_sizes()):
            known |= parser._option_string_actions.keys()
    if page.name == "tracing.md":
        known |= OF_TRACING
    if page.name == "deploy.md":
        known |= OF_DEPLOY
    assert set(FLAG.findall(text)) <= known
    variables = {variable(name) for name in Settings.model_fields} | ELSEWHERE | OF_TESTS
    assert set(re.findall(r"\bR2M_[A-Z_]*[A-Z]\b", text)) <= variables
