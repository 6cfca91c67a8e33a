"""Every `r2m …` of the pages is a command that there is, with options that it takes."""

import pathlib
import re
import shlex

import click
import pytest

from r2m_client.cli import main

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INLINE = re.compile(r"`(r2m [a-z-][^`\n]*)`")
FENCED = re.compile(r"^```[a-z]*\n(.*?)^```", flags=re.M | re.S)
ENDS = {"|", "&&", "&", ";", ">", "2>", "||", "<"}


def said(page):
    text = page.read_text()
    for block in FENCED.findall(text):
        joined = block.replace("\\\n", " ")
        yield from (line for line in joined.splitlines() if re.match(r"r2m [a-z-]", line))
    yield from INLINE.findall(text)


def words(line):
    try:
        found = shlex.split(line.replace("…", ""), comments=True)
    except ValueError:  # an apostrophe in words for people
        found = line.split()
    for place, word in enumerate(found):
        if word in ENDS or word.startswith((">", "2>")):
            return found[1:place]
    return found[1:]


def problem(line):
    command, rest = main, words(line)
    context = click.Context(command)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        inner = command.get_command(context, name)
        if inner is None:
            return f"{name!r} is no command"
        command = inner
        context = click.Context(command, parent=context)
    known = {
        option for one in command.get_params(context) for option in (*one.opts, *one.secondary_opts)
    }
    unknown = [word for word in rest if word.startswith("--") and word.split("=")[0] not in known]
    return f"{unknown[0]} is no option of it" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_can_be_typed(page):
    wrong = {line: why for line in said(page) if (why := problem(line))}
    assert wrong == {}


def test_the_check_finds_what_is_wrong():
    assert problem("r2m heads my-run") == "'my-run' is no command"
    assert problem("r2m rollback RUN --to-stepp 4") == "--to-stepp is no option of it"
    assert problem('r2m rollback RUN --to-step 400 --reason "x"  # back') is None
    assert sum(len(list(said(page))) for page in PAGES) > 60
