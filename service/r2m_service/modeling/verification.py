"""A model's own forward pass against its head on H_last, on a few texts, before it scores any.

A reward here is w·H_last + b. A model that computes more than that (another token, a gate, a bias
that was not loaded) would get wrong rewards without a word: it is refused with both numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from r2m_service.modeling.backbone import Backbone
from r2m_service.modeling.checkpoint_files import ModelRefusedError
from r2m_service.modeling.readers import Reader, segments_of

SENTENCE = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. "
LONG_TOKENS = 256
"""Of the long probe, where a text of the full length would take too long."""

SHORT_LIMIT = 512
"""Up to so many tokens the long probe has the full length: it finds a table of positions that is
shorter than the stated limit."""

ROUNDING = 8
"""Units of rounding by which two ways to compute the same dot product may differ."""

BATCH_TOLERANCE = {4: 1e-4, 2: 0.1}
"""How far a padded batch may move a reward against its scale, by the dtype's bytes."""

ALONE = "a padded batch would change this model's rewards: texts are read one by one"


def probes_of(tokenizer: Any, limit: int, pad: int | None) -> dict[str, tuple[int, ...]]:
    """Token ids of a few texts, each named for the error that it may find.

    Args:
        limit: tokens of the longest text.
        pad: the padding id, where there is one, among those that the model embeds.
    """
    once = _ids(tokenizer, SENTENCE)
    most = limit if limit <= SHORT_LIMIT else LONG_TOKENS
    short = once[: min(5, limit)]
    # Repeated as ids: a tokenizer's separators at both ends stay inside, which no model minds.
    long = (once * (most // len(once) + 1))[:most]
    probes = {"a short text": short, f"a text of {len(long)} tokens": long}
    if pad is not None and limit > 2:
        # Some classes read before the first padding token, and others before the padding's end.
        probes["a text with pad inside"] = (*short[:1], pad, *short[1 : limit - 1])
    ends = {
        "a text that ends in eos": getattr(tokenizer, "eos_token_id", None),
        "a text that ends in pad": pad,
    }
    for name, end in ends.items():
        if end is not None and limit > 1:
            probes[name] = (*short[: limit - 1], int(end))
    return probes


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    ids = tuple(int(one) for one in tokenizer(text, verbose=False)["input_ids"])
    return ids or (0,)


@torch.inference_mode()
def own_reward(
    whole: nn.Module, ids: Sequence[int], device: torch.device, separator: int | None = None
) -> float:
    """The reward that the model's own class gives to one unpadded text.

    Args:
        separator: as of `PooledReader`.

    Raises:
        ValueError: it gives something else than one number.
    """
    ids_NS = torch.tensor([list(ids)], device=device)
    segments = {} if separator is None else {"token_type_ids": segments_of(ids_NS, separator)}
    out: Any = whole(input_ids=ids_NS, **segments)
    logits = getattr(out, "logits", None)
    if not isinstance(logits, Tensor) or logits.numel() != 1:
        shape = None if not isinstance(logits, Tensor) else list(logits.shape)
        raise ValueError(f"its forward pass gives logits of shape {shape} to one text, not [1, 1]")
    return float(logits.reshape(()).float())


@torch.inference_mode()
def mismatch(
    reader: Reader,
    weight_R: Tensor,
    bias: Tensor | None,
    probes: Mapping[str, tuple[int, ...]],
    own: Mapping[str, float],
    device: torch.device,
) -> str | None:
    """The first text to which the model gives another reward than its head on H_last, or None."""
    for name, ids in probes.items():
        ids_NS = torch.tensor([list(ids)], device=device)
        last_N = torch.tensor([len(ids) - 1], device=device)
        rte_R = reader(ids_NS, None, last_N).rte_NR[0]
        if rte_R.shape != weight_R.shape:
            return f"its head reads {list(weight_R.shape)} numbers, not {list(rte_R.shape)}"
        # Rounding is that of the dtype in which the model's class multiplies.
        unit = torch.finfo(rte_R.dtype).eps
        terms_R = rte_R.float() * weight_R.float().to(device)
        ours = float(terms_R.sum() + (0.0 if bias is None else float(bias)))
        scale = abs(ours) + float(terms_R.norm()) + abs(0.0 if bias is None else float(bias))
        if abs(ours - own[name]) > ROUNDING * unit * scale:
            return (
                f"to {name} its own forward pass gives {own[name]:.6g}, its head on the last "
                f"hidden state {ours:.6g}"
            )
    return None


@torch.inference_mode()
def settle(backbone: Backbone, probes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Find out how a backbone may be batched; both are measured, since no configuration says it.

    Sets `looks_ahead` where a token's state depends on those behind it, so that padding is masked;
    and `alone` where a padded batch changes a reward all the same.

    Returns:
        What an operator should know of it, in sentences.

    Raises:
        ModelRefusedError: a run could not attend to its token states, which have another width.
    """
    (read,) = backbone.encode([next(iter(probes.values()))], states=[True])
    if read.states_SR is not None and read.states_SR.shape[1] != backbone.width_R:
        raise ModelRefusedError(
            f"{backbone.name!r} has token states of width {read.states_SR.shape[1]}, and its head "
            f"reads {backbone.width_R} numbers; a model where both are the same is needed"
        )
    if not backbone.looks_ahead:
        backbone.looks_ahead = _looks_ahead(backbone, next(iter(probes.values())))
    if backbone.alone:
        return [ALONE]
    texts = list(probes.values())
    together = torch.stack([one.rte_R for one in backbone.encode(texts)])
    singly = torch.stack([backbone.encode([ids])[0].rte_R for ids in texts])
    scale_N = (singly * backbone.weight_R).norm(dim=-1) + backbone.vanilla(singly).abs()
    moved = ((backbone.vanilla(together) - backbone.vanilla(singly)).abs() / scale_N).max()
    # A reward that is no number is not greater: the warm-up pass reports it.
    if float(moved) > BATCH_TOLERANCE[backbone.dtype.itemsize]:
        backbone.alone = True
        return [ALONE]
    return []


def _looks_ahead(backbone: Backbone, ids: Sequence[int]) -> bool:
    """Whether the states of a text's tokens change with its last token."""
    first, other = list(ids), [*ids[:-1], (ids[-1] + 1) % backbone.text.vocabulary]
    if len(first) < 2:
        first, other = [*first, *first], [*first, *other]
    states = [backbone.encode([one], states=[True])[0].states_SR for one in (first, other)]
    before = [one[:-1].float() for one in states if one is not None]
    # A causal model computes them alike to the last bit, in any dtype: the shapes are the same.
    return bool((before[0] - before[1]).abs().max() > 1e-5 * before[0].abs().max())
