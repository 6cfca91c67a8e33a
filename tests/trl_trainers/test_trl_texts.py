"""What the reward model reads of TRL's prompts and completions."""

import pytest

from r2m_client.integrations._texts import as_sample
from r2m_client.integrations.trl._texts import schemas

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "there"}


def test_a_conversation_goes_whole():
    system = {"role": "system", "content": "Be kind."}
    one = as_sample("a", "g", [system, USER], [ASSISTANT], format="raw", tools=None)
    assert one.messages == [system, USER, ASSISTANT]
    assert (one.id, one.group, one.prompt, one.response) == ("a", "g", None, None)


def test_tool_turns_keep_what_the_template_needs():
    call = {
        "role": "assistant", "content": None, "reasoning_content": "hm",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
    }  # fmt: skip
    result = {"role": "tool", "name": "add", "tool_call_id": "7", "content": "2", "images": None}
    one = as_sample("a", "g", [USER], [call, result, ASSISTANT], format="raw", tools=None)
    assert one.messages[1] == {
        "role": "assistant", "content": None, "tool_calls": call["tool_calls"],
    }  # fmt: skip
    assert one.messages[2] == {
        "role": "tool", "content": "2", "name": "add", "tool_call_id": "7",
    }  # fmt: skip


def test_parts_of_text_are_joined_and_images_refused():
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    }
    one = as_sample("a", "g", [parts], [ASSISTANT], format="raw", tools=None)
    assert one.messages[0]["content"] == "ab"
    parts["content"].append({"type": "image", "image": object()})
    with pytest.raises(ValueError, match="a prompt has a part of type image"):
        as_sample("a", "g", [parts], [ASSISTANT], format="raw", tools=None)


def test_strings():
    one = as_sample("a", "g", "Hi ", "there", format="raw", tools=None)
    assert (one.prompt, one.response, one.format, one.messages) == ("Hi ", "there", "raw", None)
    mixed = as_sample("a", "g", "Hi", [ASSISTANT], format="raw", tools=None)
    assert mixed.messages == [USER, ASSISTANT]


def add(a: int, b: int) -> int:
    """
    Adds.

    Args:
        a: one.
        b: another.
    """
    return a + b


def test_functions_become_schemas():
    assert schemas(None) is None
    given = {"type": "function", "function": {"name": "x"}}
    first, second = schemas([add, given])
    assert first["function"]["name"] == "add"
    assert second == given
