"""What a model and its tokenizer allow: text lengths, token ids, padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from r2m_service.modeling.checkpoint_files import ModelRefusedError

LONGROPE = {"longrope", "su"}
"""Names of the scaling that has one set of frequencies for short texts and one for long ones."""

UNLIMITED = 1 << 20
"""Tokens of a text where neither model nor tokenizer states a limit."""


def pad_of(config: Any) -> int | None:
    """The padding id that a model's classes know, where they know one."""
    return getattr(config.get_text_config(), "pad_token_id", None)


def width_of(config: Any) -> int:
    """D_rm, the width of a model's hidden states; OPT-350M projects them down at its end."""
    text = config.get_text_config()
    return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)


def rope_switches(config: Any) -> tuple[int, ...]:
    """Text lengths beyond which all positions are embedded otherwise (LongRoPE).

    `dynamic` scaling has its switch at `max_position_embeddings`, which no text exceeds here.
    """
    text = config.get_text_config()
    stated = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    # One set of parameters, or one for each type of layer.
    each = [one for one in (stated, *stated.values()) if isinstance(one, Mapping)]
    switches = {
        one.get("original_max_position_embeddings")
        or getattr(text, "original_max_position_embeddings", None)
        for one in each
        if one.get("rope_type", one.get("type")) in LONGROPE
    }
    return tuple(sorted(int(switch) for switch in switches if switch))


def max_length_of(config: Any, tokenizer: Any, asked: int | None, notes: list[str]) -> int:
    """Tokens that a text may have: what model and tokenizer both allow, or what is asked for."""
    stated = getattr(config.get_text_config(), "max_position_embeddings", None)
    model = stated if isinstance(stated, int) and stated > 0 else UNLIMITED
    own = getattr(tokenizer, "model_max_length", None) or UNLIMITED
    tokens = int(min(own, UNLIMITED))  # a tokenizer without a limit states 1e30
    if asked is None:
        if tokens < model < UNLIMITED:
            notes.append(
                f"texts have up to {tokens} tokens, the tokenizer's limit; the model takes {model} "
                "where --max-length says so"
            )
        return min(model, tokens)
    if not 1 <= asked <= model:
        raise ModelRefusedError(f"max length is between 1 and the model's {model}, got {asked}")
    if asked > tokens:
        notes.append(f"--max-length {asked} is over the tokenizer's limit of {tokens}")
    return asked


def within_table(limit: int, base: nn.Module, *, asked: int | None = None) -> int:
    """The limit within a learned table of positions that counts from behind its padding (RoBERTa).

    Raises:
        ModelRefusedError: more was asked for.
    """
    for name, module in base.named_modules():
        if not isinstance(module, nn.Embedding) or "position" not in name.rpartition(".")[2]:
            continue
        if module.padding_idx is not None:
            rows = module.num_embeddings - module.padding_idx - 1
            if asked is not None and asked > rows:
                raise ModelRefusedError(
                    f"max length is between 1 and the model's {rows}, got {asked}"
                )
            limit = min(limit, rows)
    return limit


def embedded_ids(model: str, base: nn.Module, tokenizer: Any) -> int:
    """How many token ids the model embeds.

    Raises:
        ModelRefusedError: the tokenizer has others.
    """
    embedding: Any = base.get_input_embeddings()  # type: ignore[operator]
    rows = int(embedding.weight.shape[0])
    if len(tokenizer) > rows:
        raise ModelRefusedError(
            f"{model!r}: the tokenizer knows {len(tokenizer)} tokens, the model embeds {rows}: "
            "they do not belong together"
        )
    pad = tokenizer.pad_token_id
    if pad is not None and not 0 <= pad < rows:
        raise ModelRefusedError(f"{model!r}: pad token {pad} is outside the {rows} embeddings")
    return rows
