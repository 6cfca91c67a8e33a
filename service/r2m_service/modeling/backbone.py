"""The frozen reward LLM: token ids become the reward token embedding (RTE), H_last.

The model's own scoring head (`weight_R`, `bias`) is applied in float32; the backbone runs in its
own dtype and is never written to. `loading` says which models can be one.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from r2m_service.modeling.readers import PooledReader, Reader
from r2m_service.modeling.text import TextEncoder

TRUNCATION_RULE = "refuse"
VOLATILE_CONFIG = ("_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample's embeddings.

    Attributes:
        rte_R: H_last, what the model's own class multiplies by its scoring head; float32.
        states_SR: the last layer's states (after the final norm) of all tokens, in the backbone's
            dtype; None where nobody asked.
    """

    rte_R: Tensor
    states_SR: Tensor | None


class Backbone:
    """A frozen LLM with its tokenizer, its scoring head, and its fingerprint.

    Build it with `loading.load_backbone`, which measures `looks_ahead` and `alone`.

    Attributes:
        pad: the id that fills a shorter text of a batch.
        switches: text lengths beyond which the model computes all its tokens differently (LongRoPE
            has one set of frequencies for short texts and one for long ones).
        pooled: whether its class pools (an encoder), instead of reading one token.
        looks_ahead: whether a token's state may depend on those behind it: padding is masked.
        alone: whether padding changes rewards all the same, so that each text has its own pass.
        notes: what an operator should know of this model, in sentences.
    """

    def __init__(
        self,
        *,
        name: str,
        reader: Reader,
        config: Mapping[str, Any],
        weight_R: Tensor,
        bias: Tensor | None,
        text: TextEncoder,
        device: torch.device,
        dtype: torch.dtype,
        pad: int = 0,
        switches: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.text = text
        self.device = device
        self.dtype = dtype
        self.pad = pad
        self.switches = switches
        self.pooled = isinstance(reader, PooledReader)
        self.looks_ahead = self.pooled
        self.alone = False
        self.notes: tuple[str, ...] = ()
        self.weight_R = weight_R.detach().float().to(device)
        self.bias = None if bias is None else bias.detach().float().reshape(()).to(device)
        self._config = config
        self._reader = reader.requires_grad_(False).eval().to(device)
        self._forward: Callable[..., Any] = self._reader
        self.width_R = int(self.weight_R.shape[0])
        self.fingerprint = self.compute_fingerprint()

    def compile(self, backend: str = "inductor") -> None:
        """Compile the forward pass, and warm it up: minutes, once a process.

        Shapes are dynamic, so two programs serve all batches: one text, and several. They are made
        here, not while a caller waits. (Texts of one token would make others.)

        Args:
            backend: of torch.compile.
        """
        self._forward = torch.compile(self._reader, dynamic=True, backend=backend)
        for lengths in ((8,), (9, 5)):
            self.encode([[0] * length for length in lengths])

    def vanilla(self, rte_NR: Tensor) -> Tensor:
        """The frozen model's own rewards, w₀·H_last + b₀."""
        rewards_N = rte_NR @ self.weight_R
        return rewards_N if self.bias is None else rewards_N + self.bias

    @torch.inference_mode()
    def encode(
        self, batch: Sequence[Sequence[int]], *, states: Sequence[bool] | None = None
    ) -> list[Encoded]:
        """RTEs of a batch; texts that may not share a pass have one each.

        Args:
            batch: token ids, at least one each.
            states: of which texts all tokens' states are wanted too; None: of none.
        """
        passes: defaultdict[int, list[int]] = defaultdict(list)
        for row, ids in enumerate(batch):
            passes[row if self.alone else self._side(len(ids))].append(row)
        encoded: dict[int, Encoded] = {}
        for rows in passes.values():
            wanted = {row for row in rows if states is not None and states[row]}
            encoded.update(self._pass({row: batch[row] for row in rows}, wanted))
        return [encoded[row] for row in range(len(batch))]

    def _side(self, length: int) -> int:
        """How many of the switches a text of this length is beyond."""
        return sum(length > switch for switch in self.switches)

    def _pass(
        self, texts: Mapping[int, Sequence[int]], wanted: Collection[int]
    ) -> dict[int, Encoded]:
        """One forward pass over a right-padded batch.

        No token of a causal model sees padding on its right: its states are those of the unpadded
        text, up to rounding, without a mask, which would take attention's slower kernel.
        """
        lengths = {row: len(ids) for row, ids in texts.items()}
        longest = max(lengths.values())
        ids_NS = torch.full((len(texts), longest), self.pad, dtype=torch.long)
        mask_NS = torch.zeros(len(texts), longest, dtype=torch.long)
        for place, ids in enumerate(texts.values()):
            ids_NS[place, : len(ids)] = torch.tensor(ids)
            mask_NS[place, : len(ids)] = 1
        masked = self.looks_ahead and min(lengths.values()) < longest
        rte_NR, hidden_NSR = self._forward(
            ids_NS.to(self.device),
            mask_NS.to(self.device) if masked else None,
            (mask_NS.sum(-1) - 1).to(self.device),
        )
        return {
            row: Encoded(
                rte_NR[place].float().clone(),
                hidden_NSR[place, :length].clone() if row in wanted else None,
            )
            for place, (row, length) in enumerate(lengths.items())
        }

    def compute_fingerprint(self) -> str:
        """SHA-256 over all that changes a reward; a million updates must leave it as it is."""
        digest = hashlib.sha256()

        def add(label: str, value: bytes | memoryview) -> None:
            digest.update(f"{label}:{len(value)}:".encode())
            digest.update(value)

        for name, tensor in sorted(self._reader.module.state_dict().items()):
            add(f"{name} {tensor.dtype} {list(tensor.shape)}", _raw(tensor))
        add("head.weight", _raw(self.weight_R))
        add("head.bias", b"" if self.bias is None else _raw(self.bias))
        settings = {k: v for k, v in self._config.items() if k not in VOLATILE_CONFIG}
        add("config", json.dumps(settings, sort_keys=True, default=str).encode())
        tokenizer = self.text.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend else json.dumps(sorted(tokenizer.get_vocab()))
        add("tokenizer", vocabulary.encode())
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        add("special", json.dumps(special, sort_keys=True).encode())
        add("template", str(tokenizer.chat_template or "").encode())
        rule = {
            "dtype": str(self.dtype),
            "max_length": self.text.max_length,
            "truncation": TRUNCATION_RULE,
            **self.text.settings,
        }
        reads = self._reader.rule(getattr(tokenizer, "eos_token_id", None))
        if reads is not None:  # only then: fingerprints of models read at the last token stay
            rule["reads"] = reads
        add("rule", json.dumps(rule, sort_keys=True).encode())
        return digest.hexdigest()


def _raw(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)
