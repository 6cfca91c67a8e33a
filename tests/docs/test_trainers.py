"""The blocks of docs/trainers.md run as they stand, and show what a real server answers."""

from __future__ import annotations

import json
import re
import shutil
from urllib.parse import urlsplit

import pytest
from api_answers import masked
from api_blocks import ROOT, Player, blocks, documents, promised
from support import verl_stands
from support.serving import running

PAGE = ROOT / "docs" / "trainers.md"
SECTIONS = (
    "What trainers call by themselves",
    "OpenRLHF",
    "slime",
    "verl",
    "vLLM and SGLang clients",
    "NeMo Gym",
    "LLaMA-Factory",
)
TEXT = "".join(
    f"\n## {part}"
    for part in PAGE.read_text().split("\n## ")
    if part.partition("\n")[0] in SECTIONS
)
BLOCKS = blocks(TEXT)
TOOLS = ("bash", "curl")


@pytest.fixture(scope="module")
def played(reward_model, tmp_path_factory):
    """The outcome of each block, in the order of the page."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    with running(reward_model, tmp_path_factory.mktemp("state")) as server:
        player = Player(tmp_path_factory.mktemp("reader"), server.urls)
        try:
            yield {block.line: player.play(block) for block in BLOCKS}
        finally:
            if "client" in player.names:
                player.names["client"].close()


def alike(value):
    """A JSON value without what the machine, the clock and the model decide."""
    if isinstance(value, dict):
        varying = ("id", "created", "tokens", "prompt_tokens", "total_tokens")
        return {key: None if key in varying else alike(one) for key, one in value.items()}
    if isinstance(value, list):
        return [alike(one) for one in value]
    whole = not isinstance(value, float) or value.is_integer() or value == 0.6
    return value if whole else "fraction"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_the_block_does_what_the_page_says(played, block):
    outcome = played[block.line]
    if outcome.failure is not None:
        raise outcome.failure
    if block.kind == "python":
        assert masked(outcome.out) == masked("".join(f"{line}\n" for line in promised(block)))
        return
    assert {status for _, _, status in outcome.calls} == {block.status}
    assert alike(documents(block.answer.code)) == alike(documents(outcome.out))


def test_every_route_of_trainers_has_an_example(played):
    document = json.loads((ROOT / "docs" / "openapi.json").read_text())
    routes = {
        path
        for path, methods in document["paths"].items()
        for one in methods.values()
        if one["tags"] == ["trainers"]
    }
    asked = {urlsplit(url).path for one in played.values() for _, url, _ in one.calls}
    # /health has no body to show.
    for path in {path for path in routes if not path.startswith("/runs/")} - {"/health"}:
        form = re.sub(r"{\w+}", "[^/]+", path)
        assert any(re.fullmatch(form, one) for one in asked), path
    # The same below a run: the page has one of them, and the table names the rest.
    assert "/runs/graded/get_reward" in asked
    assert {path.removeprefix("/runs/{run}") for path in routes} == {
        path for path in routes if not path.startswith("/runs/")
    }


def test_what_the_page_names_is_there(monkeypatch):
    text = PAGE.read_text()
    for path in re.findall(r"`(tests/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (PAGE.parent / link).exists(), link
    from r2m_client.integrations import openrlhf, verl

    verl_worker = verl_stands.adapter(monkeypatch)
    for module in (openrlhf, verl, verl_worker):
        assert module.__name__ in text
    named = set(re.findall(r"`(Feedback\w+?)(?:\.\w+)?`", text))
    assert named == {
        "FeedbackActor",
        "FeedbackExperienceMaker",
        "FeedbackWorker",
        "FeedbackTrainer",
    }
    for name in named:
        assert hasattr(openrlhf, name) or hasattr(verl_worker, name)
