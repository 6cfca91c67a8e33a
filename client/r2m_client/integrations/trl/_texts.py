"""TRL's tools, for the reward model's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def schemas(tools: Sequence[Any] | None) -> list[Mapping[str, Any]] | None:
    """The trainer's tools as function schemas, for the reward model's chat template."""
    if not tools:
        return None
    from transformers.utils.chat_template_utils import get_json_schema

    return [get_json_schema(tool) if callable(tool) else tool for tool in tools]
