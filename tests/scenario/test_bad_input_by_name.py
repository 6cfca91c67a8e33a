"""What is refused is refused by name, whole, and leaves everything as it was."""

import httpx
import pytest
from support.rollouts import WIDTH_P, groups

from r2m_client import NotFound, Pair, Sample

METHOD = {"width": 16, "learning_rate": 3e-4}


def pair(number, **changes):
    return {
        "id": f"p{number}",
        "chosen": {"id": f"c{number}", "prompt": "Hi", "response": "there"},
        "rejected": {"id": f"r{number}", "prompt": "Hi", "response": f"you {number}"},
        **changes,
    }


STATES = {"dtype": "float32", "shape": [1, 1], "data": "AAAAAA=="}
BAD = {
    "a tie": (pair(1, gold=[1.0, 1.0]), "invalid_request", "pairs[1].gold", "tie judges nothing"),
    "the worse first": (
        pair(1, gold=[0.0, 1.0]), "invalid_request", "pairs[1].gold", "the first greater",
    ),
    "equal sides": (
        pair(1, rejected=pair(1)["chosen"]), "invalid_request", "pairs[1]", "the same text",
    ),
    "an id twice": (pair(0), "duplicate_id", "pairs[1].id", "two pairs"),
    "hidden states": (
        pair(1, chosen={**pair(1)["chosen"], "feedback": STATES}),
        "invalid_request", "pairs[1].chosen.feedback", "they come with align",
    ),
    "no text": (pair(1, chosen={"id": "c1"}), "text_empty", "pairs[1].chosen", "no text"),
    "too long": (
        pair(1, chosen={"id": "c1", "prompt": "Hi", "response": "word " * 300}),
        "text_too_long", "pairs[1].chosen", "tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", list(BAD))
def test_anchors(server, client, run_name, what):
    client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
    good = [Pair("g", Sample("a", "Hello", "there"), Sample("b", "Hello", "you"))]
    before = client.put_anchors(run_name, good)
    bad, code, field, words = BAD[what]
    address = f"{server.urls['http']}/v1/runs/{run_name}/anchors"
    answer = httpx.put(address, json={"pairs": [pair(0), bad]})
    assert 400 <= answer.status_code < 500
    error = answer.json()["error"]
    assert (error["code"], error["field"]) == (code, field)
    assert words in error["message"]
    assert client.anchors(run_name) == before
    assert [one.what for one in client.changes(run_name)] == ["created", "anchors"]


def test_a_rollback_to_a_head_of_another_run(client, run_name):
    """Heads are numbered by run: another's number is unknown here, whatever it is there."""
    for run, steps in ((run_name, 1), (f"{run_name}-b", 3)):
        client.create_run(run, policy_hidden_size=WIDTH_P, method=METHOD)
        for step in range(1, steps + 1):
            client.align(run, step=step, groups=groups(step))
    before = client.run(run_name)
    with pytest.raises(NotFound, match="unknown_head") as caught:
        client.rollback(run_name, to=3)
    assert "has no head 3" in caught.value.message
    after = client.run(run_name)
    assert (after.branch, after.head, after.step, after.aliases) == (
        before.branch, before.head, before.step, before.aliases,
    )  # fmt: skip
