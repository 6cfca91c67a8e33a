"""One pass of the policy as its decoder was called, and where in it each sample lies."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True, eq=False)
class Pass:
    """One forward pass of B rows and T columns.

    Attributes:
        ids: token ids [B, T], or None where embeddings went in.
        mask: the attention mask as given: [B, past + T], another form, or None.
        positions: position ids as given, or None.
        cu_seqlens: bounds of packed samples in the one row, as FlashAttention takes them, or None.
        past: columns that lay in the cache before.
        grad: whether autograd recorded it.
        caching: whether it fills a cache to go on from (generation does).
        states: what the norm gave, [B, T, D_p], detached and not copied.
    """

    ids: Tensor | None
    mask: Any
    positions: Tensor | None
    cu_seqlens: Tensor | None
    past: int
    grad: bool
    caching: bool
    states: Tensor | None = field(default=None, repr=False)
    cache: Any = field(default=None, repr=False)

    @staticmethod
    def of(given: Mapping[str, Any]) -> Pass:
        """What a decoder's forward was called with, by parameter name.

        Raises:
            ValueError: a paged cache, whose rows are many requests at once.
        """
        if given.get("read_index") is not None or given.get("block_table") is not None:
            raise ValueError(
                "continuous batching mixes many requests in a pass: forward the finished texts "
                "once instead"
            )
        cache = _cache(given)
        size: Callable[[], int] | None = getattr(cache, "get_seq_length", None)
        caching = given.get("use_cache")
        return Pass(
            ids=given.get("input_ids"),
            mask=given.get("attention_mask"),
            positions=given.get("position_ids"),
            cu_seqlens=given.get("cu_seq_lens_q"),
            past=0 if size is None else int(size()),
            grad=torch.is_grad_enabled(),
            caching=cache is not None if caching is None else bool(caching),
            cache=_weak(cache),
        )

    def remember_cache(self, output: Any) -> None:
        """Of a first pass that made its cache itself: what the next one goes on from."""
        if self.cache is None and hasattr(output, "keys"):
            self.cache = _weak(_cache(output))


def _cache(given: Mapping[str, Any]) -> Any:
    found = given.get("cache")  # transformers 5.24 and later call it so
    return given.get("past_key_values") if found is None else found


def _weak(cache: Any) -> Any:
    try:
        return None if cache is None else weakref.ref(cache)
    except TypeError:  # a tuple of tensors
        return None


class Chain:
    """Passes that go on from each other's cache: a prefill and what was decoded after it."""

    def __init__(self, first: Pass) -> None:
        self.passes = [first]

    @property
    def columns(self) -> int:
        """Those fed so far."""
        return self.passes[-1].past + _columns(self.passes[-1])

    @property
    def decodes(self) -> bool:
        """Whether it ends in single tokens fed one after the other, as sampling does."""
        return len(self.passes) > 1 and _columns(self.passes[-1]) == 1

    def precedes(self, later: Pass) -> bool:
        """Whether `later` goes on from here."""
        mine = [one.cache() for one in self.passes if one.cache is not None]
        theirs = None if later.cache is None else later.cache()
        return self.columns == later.past and (theirs is None or not mine or mine[-1] is theirs)

    def rows(self, ends: Sequence[int]) -> list[Row]:
        """Its samples, in order.

        Args:
            ends: ids of tokens that end a generation.

        Raises:
            ValueError: a mask or positions that do not say where the samples lie.
        """
        states = _joined([one.states for one in self.passes])
        first = self.passes[0]
        if first.cu_seqlens is not None:
            spans = _from_bounds(first.cu_seqlens, states)
        else:
            shape = (states.shape[0], states.shape[1])
            spans = _from_mask(self._mask(states), self._positions(states), shape)
        if len(self.passes) > 1 and len(spans) != len(states):
            raise ValueError("packed samples cannot be decoded from")
        ids = self._ids()
        return [
            Row(states, place, columns, ids, self.decodes, self._finished(place, ids, ends))
            for place, columns in spans
        ]

    def _mask(self, states: Tensor) -> Tensor | None:
        """[B, T] of all passes, on the CPU; None: all columns count."""
        masks = [one.mask for one in self.passes]
        if all(mask is None for mask in masks):
            return None
        for mask in masks:
            if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
                raise ValueError(
                    "the policy was called with an attention mask that is not [batch, tokens]: it "
                    "does not say which tokens are padding"
                )
        rows, columns = states.shape[:2]
        if masks[-1] is not None and masks[-1].shape[1] >= columns:
            whole = masks[-1][:, :columns]  # a later mask covers what was fed before it
        else:
            parts: list[Tensor] = []
            for one in self.passes:
                fed = _columns(one)
                ones = torch.ones((rows, fed), dtype=torch.bool)
                given = one.mask
                parts.append(ones if given is None else _fed(given, one.past, fed).cpu().bool())
            whole = torch.cat(parts, dim=1)
        whole = whole.cpu()
        if whole.shape != (rows, columns) or bool(((whole != 0) & (whole != 1)).any()):
            raise ValueError(
                f"the attention mask {list(whole.shape)} is not one of zeros and ones for the "
                f"pass's {rows} rows of {columns} tokens"
            )
        return whole.bool()

    def _positions(self, states: Tensor) -> Tensor | None:
        """[B, T] of a single pass, on the CPU, where they may show packing."""
        positions = self.passes[0].positions
        if positions is None or len(self.passes) > 1:
            return None
        if positions.ndim != 2:  # axes of images and text: no packing is read from them
            return None
        return positions.expand(states.shape[:2]).cpu()

    def _ids(self) -> Tensor | None:
        given = [one.ids for one in self.passes]
        return None if any(ids is None for ids in given) else _joined(given)

    def _finished(self, row: int, ids: Tensor | None, ends: Sequence[int]) -> int | None:
        """The column of the token that ended this row, if it was fed; what follows is padding."""
        if ids is None or not self.decodes or not ends:
            return None
        decoded = 0
        for one in reversed(self.passes):  # the last turn alone: earlier ones end in it, too
            if _columns(one) != 1 or one.past == 0:
                break
            decoded += 1
        start = self.columns - decoded
        last = ids[row, start:].tolist()
        return next((start + n for n, token in enumerate(last) if token in ends), None)


@dataclass(slots=True, eq=False)
class Row:
    """One sample: which columns of which row.

    Attributes:
        states: [B, T, D_p], shared with the other rows.
        columns: those of its tokens, ascending.
        ids: [B, T], or None.
        decoded: whether it was generated token by token.
        finished: the column of the token that ended it, where generation went on beyond.
    """

    states: Tensor = field(repr=False)
    row: int
    columns: Sequence[int]
    ids: Tensor | None = field(repr=False)
    decoded: bool
    finished: int | None

    @property
    def tokens(self) -> int:
        """Of its text: of a generation, with the last sampled one, which was not fed."""
        if self.finished is not None:
            return sum(column <= self.finished for column in self.columns)
        return len(self.columns) + self.decoded

    def cut(self, count: int) -> Tensor:
        """The first `count` states, [count, D_p]: a view where its columns are contiguous."""
        return _cut(self.states, self.row, self.columns[:count])

    def token_ids(self, count: int) -> Tensor | None:
        """The first `count` token ids."""
        return None if self.ids is None else _cut(self.ids, self.row, self.columns[:count])


def _cut(source: Tensor, row: int, columns: Sequence[int]) -> Tensor:
    if columns and columns[-1] - columns[0] + 1 == len(columns):
        return source[row, columns[0] : columns[-1] + 1]
    return source[row, torch.tensor(list(columns), dtype=torch.long, device=source.device)]


def _columns(one: Pass) -> int:
    assert one.states is not None, "the norm has run"
    return one.states.shape[1]


def _fed(mask: Tensor, past: int, fed: int) -> Tensor:
    """The part of a pass's mask that speaks of the tokens it was fed."""
    return mask[:, past : past + fed] if mask.shape[1] >= past + fed else mask[:, -fed:]


def _joined(parts: Sequence[Tensor | None]) -> Tensor:
    tensors = [part for part in parts if part is not None]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)


def _from_bounds(bounds: Tensor, states: Tensor) -> list[tuple[int, Sequence[int]]]:
    ends: list[int] = bounds.flatten().tolist()
    if states.shape[0] != 1 or ends[0] != 0 or ends[-1] > states.shape[1] or ends != sorted(ends):
        raise ValueError(
            f"cu_seq_lens_q goes from {ends[0]} to {ends[-1]}, the pass has "
            f"{states.shape[0]} rows of {states.shape[1]} tokens"
        )
    pairs = itertools.pairwise(ends)
    return [(0, range(start, end)) for start, end in pairs if end > start]


def _from_mask(
    mask: Tensor | None, positions: Tensor | None, shape: tuple[int, int]
) -> list[tuple[int, Sequence[int]]]:
    """Each row's tokens, divided where positions start again at 0 (packing)."""
    spans: list[tuple[int, Sequence[int]]] = []
    for row in range(shape[0]):
        columns: Sequence[int] = range(shape[1])
        if mask is not None and not bool(mask[row].all()):
            columns = mask[row].nonzero().flatten().tolist()
        starts = [0]
        if positions is not None:
            own = positions[row][torch.tensor(columns, dtype=torch.long)]
            starts += [place for place in (own == 0).nonzero().flatten().tolist() if place]
        for start, end in zip(starts, [*starts[1:], len(columns)], strict=True):
            spans.append((row, columns[start:end]))
    return spans
