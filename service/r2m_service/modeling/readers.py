"""How a model gets from token ids to H_last, the vector that its scoring head multiplies.

`TokenReader`: a decoder's state at one token. `PooledReader`: what a class with a pooling of its
own (an encoder) hands to its last linear layer. Both are modules, so that they compile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Read(NamedTuple):
    """What a pass over a batch gives: H_last, and the states of all tokens, padding included."""

    rte_NR: Tensor
    hidden_NSR: Tensor


class TokenReader(nn.Module):
    """A decoder, read at the last token, or at the last one that is not `pad`.

    Args:
        base: gives `last_hidden_state`, after its final norm.
        pad: the id that transformers' class skips at the end of a text. A text of nothing else is
            read at its first token, as that class does.
    """

    def __init__(self, base: nn.Module, pad: int | None) -> None:
        super().__init__()
        self.base = base
        self.pad = pad

    @property
    def module(self) -> nn.Module:
        """What holds the frozen weights."""
        return self.base

    def rule(self, eos: int | None) -> str | None:
        """For the fingerprint: where texts are read; None: where their last token is.

        A text ends in eos every day and in another padding token hardly ever, so only a model that
        pads with eos reads its ordinary texts elsewhere.
        """
        return None if self.pad is None or self.pad != eos else f"last token that is not {self.pad}"

    def forward(self, ids_NS: Tensor, mask_NS: Tensor | None, last_N: Tensor) -> Read:
        """H_last of right-padded texts.

        Args:
            ids_NS: token ids.
            mask_NS: 1 where a token is the text's own; None: the model needs none.
            last_N: place of each text's last token.
        """
        out = self.base(input_ids=ids_NS, attention_mask=mask_NS, use_cache=False)
        hidden_NSR: Tensor = out.last_hidden_state
        places_S = torch.arange(ids_NS.shape[1], device=ids_NS.device)
        own_NS = places_S <= last_N[:, None]
        if self.pad is not None:
            own_NS = own_NS & (ids_NS != self.pad)
        read_N = (places_S * own_NS).argmax(-1)
        rows_N = torch.arange(ids_NS.shape[0], device=ids_NS.device)
        return Read(hidden_NSR[rows_N, read_N], hidden_NSR)


class PooledReader(nn.Module):
    """A classifier whose last linear layer became the identity: its logits are H_last.

    Args:
        whole: the class, in which `Identity` stands in the place of that layer.
        base: the part of it that gives `last_hidden_state`.
        separator: id of the token that ends a segment, where the model embeds segments.
    """

    def __init__(self, whole: nn.Module, base: nn.Module, separator: int | None) -> None:
        super().__init__()
        self.whole = whole
        self.separator = separator
        self._hidden: list[Tensor] = []
        base.register_forward_hook(self._keep)

    @property
    def module(self) -> nn.Module:
        """What holds the frozen weights."""
        return self.whole

    def rule(self, _: int | None) -> str:
        """For the fingerprint: its class pools."""
        return f"{type(self.whole).__name__}, segments end in {self.separator}"

    def _keep(self, _: nn.Module, __: Any, out: Any) -> None:
        self._hidden[:] = [out[0]]

    def forward(self, ids_NS: Tensor, mask_NS: Tensor | None, last_N: Tensor) -> Read:
        """As `TokenReader.forward`; the class reads where it reads."""
        segments: dict[str, Tensor] = {}
        if self.separator is not None:
            segments["token_type_ids"] = segments_of(ids_NS, self.separator)
        out = self.whole(input_ids=ids_NS, attention_mask=mask_NS, **segments)
        return Read(out.logits, self._hidden.pop())


Reader = TokenReader | PooledReader


def segments_of(ids_NS: Tensor, separator: int) -> Tensor:
    """Segment numbers of a pair of texts: 0 up to the first separator, 1 behind it."""
    ends_NS = (ids_NS == separator).long()
    return ((ends_NS.cumsum(-1) - ends_NS) > 0).long()
