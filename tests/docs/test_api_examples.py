"""Every block of docs/api.md runs and prints what the page shows; no call is without examples.

The blocks are played once, in order, against one real server; each has a test of its own.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
from urllib.parse import urlsplit

import pytest
from api_answers import differences, masked
from api_blocks import PAGE, ROOT, Block, Player, blocks, documents, promised
from support.serving import running

from r2m.v1 import r2m_pb2
from r2m_client import Client

TEXT = PAGE.read_text()
BLOCKS = blocks(TEXT)
SERVICE = r2m_pb2.DESCRIPTOR.services_by_name["RewardModelService"]
TOOLS = ("bash", "curl", "jq")


@pytest.fixture(scope="module")
def played(reward_model, tmp_path_factory):
    """The outcome of each block, and the player."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    with running(reward_model, tmp_path_factory.mktemp("state")) as server:
        player = Player(tmp_path_factory.mktemp("reader"), server.urls)
        try:
            yield {block.line: player.play(block) for block in BLOCKS}, player
        finally:
            if "client" in player.names:
                player.names["client"].close()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_the_block_does_what_the_page_says(played, block):
    outcome = played[0][block.line]
    if outcome.failure is not None:
        raise outcome.failure
    check(block, outcome)


def check(block, outcome):
    statuses = [status for _, _, status in outcome.calls]
    if statuses and block.status is not None:
        assert statuses.pop() == block.status
    elif statuses:
        assert block.answer is None, "the line above an answer states its HTTP status"
    assert all(200 <= status < 300 for status in statuses), outcome.calls
    if block.kind == "python":
        assert masked(outcome.out) == masked("".join(f"{line}\n" for line in promised(block)))
    elif block.answer is None:
        assert outcome.err == ""
    elif block.answer.kind == "text":
        assert masked(outcome.err + outcome.out) == masked(block.answer.code)
    else:
        assert not differences(documents(block.answer.code), documents(outcome.out))


def test_every_route_has_a_curl_example(played):
    with_examples = {
        (method, route)
        for outcome in played[0].values()
        for method, url, status in outcome.calls
        if status < 300
        for route in ROUTES[method]
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route), urlsplit(url).path)
    }
    assert with_examples == {(method, route) for method in ROUTES for route in ROUTES[method]}


def routes():
    """The paths of each method, and the one that OpenAPI does not list: its own.

    Those that trainers call by themselves have their examples in docs/trainers.md.
    """
    document = json.loads((ROOT / "docs" / "openapi.json").read_text())
    found = {"GET": ["/openapi.json"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation["tags"] != ["trainers"]:
                found.setdefault(method.upper(), []).append(path)
    return found


ROUTES = routes()


def test_every_rpc_has_a_grpcurl_example(played):
    with_examples = set(played[1].rpcs.read_text().split())
    asked = {f"{SERVICE.full_name}/{method.name}" for method in SERVICE.methods}
    assert with_examples == asked | {"grpc.health.v1.Health/Check"}


def test_every_method_of_the_client_has_an_example():
    called = {
        node.func.attr
        for block in BLOCKS
        if block.kind == "python"
        for node in ast.walk(ast.parse(block.code))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    methods = {name for name, _ in inspect.getmembers(Client, inspect.isfunction)}
    assert {name for name in methods if not name.startswith("_")} - {"close"} <= called


def test_the_loop_is_the_one_in_examples():
    (shown,) = [block.code for block in BLOCKS if block.code.startswith("#!")]
    assert shown == (ROOT / "examples" / "loop.sh").read_text()


def test_an_answer_unlike_the_page_is_found():
    shown = {"head": 1, "reward": 0.5, "scores": [{"id": "a", "omega": 0.6}], "ok": True}
    assert differences(shown, {**shown, "reward": 7}) == []
    for real in (
        {**shown, "head": 2},
        {**shown, "head": "1"},
        {**shown, "reward": "0.5"},
        {**shown, "more": 1},
        {**shown, "ok": 1},
        {**shown, "scores": []},
        {**shown, "scores": [{"id": "a"}]},
        {**shown, "scores": [{"id": "a", "omega": 0.7}]},
    ):
        assert len(differences(shown, real)) == 1, real


def test_a_block_that_breaks_is_found(played):
    player = played[1]
    for kind, code in (
        ("bash", "false | true\n"),
        ("bash", "curl -sf http://127.0.0.1:8080/v1/runs/nobody\n"),
        ("bash", "grpcurl -plaintext 127.0.0.1:50051 r2m.v1.RewardModelService/GetRun\n"),
        ("python", 'client.run("nobody")\n'),
    ):
        assert player.play(Block(kind, code, 1)).failure is not None, code
    missing = Block("bash", "curl -s http://127.0.0.1:8080/v1/runs/nobody\n", 1)
    with pytest.raises(AssertionError):
        check(missing, player.play(missing))
    quiet = Block("python", "print(1)  # 2\n", 1)
    with pytest.raises(AssertionError):
        check(quiet, player.play(quiet))
