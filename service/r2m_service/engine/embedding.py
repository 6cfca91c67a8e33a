"""RTEs (and token states, where a run attends to them) through the cache, on the device thread."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from r2m_service.application.scoring_items import TokenIds
from r2m_service.engine.cache import BytesCache
from r2m_service.modeling.backbone import Backbone, Encoded

PASS_TOKENS = 32
"""What another forward pass costs, in tokens: more padding than that is worth a pass of its own."""

GPU_PASS_TOKENS = 256
"""The same on a GPU, where a pass reads all weights however few its tokens."""


class Embedder:
    """Computes each distinct text once; the backbone is frozen, so an embedding never goes stale.

    Args:
        cache_bytes: what the cache may hold.
        token_budget: padded tokens of one forward pass.
        one_by_one: deterministic mode: every text alone and unpadded.
        pass_tokens: padding that one pass may waste; None: what suits the device.

    Attributes:
        text_tokens: that the backbone has read so far.
        padding_tokens: that it read for nothing beside them.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        cache_bytes: int,
        token_budget: int,
        one_by_one: bool,
        pass_tokens: int | None = None,
    ) -> None:
        self._backbone = backbone
        self._token_budget = token_budget
        self._one_by_one = one_by_one
        on_cpu = backbone.device.type == "cpu"
        self._pass_tokens = pass_tokens or (PASS_TOKENS if on_cpu else GPU_PASS_TOKENS)
        self.text_tokens = 0
        self.padding_tokens = 0
        self.cache: BytesCache[bytes, Encoded] = BytesCache(cache_bytes)

    def embed(self, texts: Sequence[TokenIds], *, states: Sequence[bool]) -> list[Encoded]:
        """One embedding a text, in order; `states`: which of them with all tokens' states."""
        keys = [_key(ids) for ids in texts]
        wanted = {key for key, one in zip(keys, states, strict=True) if one}
        found: dict[bytes, Encoded] = {}
        missing: dict[bytes, TokenIds] = {}
        for key, ids in zip(keys, texts, strict=True):
            if key in found or key in missing:
                continue
            known = self.cache.get(key)
            if known is not None and (known.states_SR is not None or key not in wanted):
                found[key] = known
            else:
                missing[key] = ids
        for batch in self._batches(missing):
            encoded = self._backbone.encode(
                [missing[key] for key in batch], states=[key in wanted for key in batch]
            )
            lengths = [len(missing[key]) for key in batch]
            self.text_tokens += sum(lengths)
            self.padding_tokens += max(lengths) * len(lengths) - sum(lengths)
            for key, one in zip(batch, encoded, strict=True):
                found[key] = one
                self.cache.put(key, one, _size(one))
        return [found[key] for key in keys]

    def _batches(self, missing: dict[bytes, TokenIds]) -> list[list[bytes]]:
        """Texts of like length together, so that padding stays small."""
        if self._one_by_one:
            return [[key] for key in missing]
        batches: list[list[bytes]] = []
        longest = padding = 0
        for key in sorted(missing, key=lambda one: len(missing[one]), reverse=True):
            padding += longest - len(missing[key])
            full = not batches or longest * (len(batches[-1]) + 1) > self._token_budget
            if full or padding > self._pass_tokens:
                batches.append([])
                longest, padding = len(missing[key]), 0
            batches[-1].append(key)
        return batches


def _key(ids: TokenIds) -> bytes:
    return hashlib.blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=16).digest()


def _size(encoded: Encoded) -> int:
    size = encoded.rte_R.nbytes
    return size if encoded.states_SR is None else size + encoded.states_SR.nbytes
