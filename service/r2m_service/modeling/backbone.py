"""The frozen reward LLM: token ids become the reward token embedding (RTE), H_last.

The model's own scoring head (`weight_R`, `bias`) is applied in float32; the backbone runs in its
own dtype and is never written to. `loading` says which models can be one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from r2m_service.modeling.text import TextEncoder

TRUNCATION_RULE = "refuse"
VOLATILE_CONFIG = ("_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype")
LOOKS_AHEAD = {"use_bidirectional_attention": True, "is_causal": False}
"""What a configuration says of a decoder whose tokens attend to those behind them."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample's embeddings.

    Attributes:
        rte_R: H_last at the last real token, float32.
        states_SR: the last layer's states (after the final norm) of all tokens, in the backbone's
            dtype; None where nobody asked.
    """

    rte_R: Tensor
    states_SR: Tensor | None


class Backbone:
    """A frozen LLM with its tokenizer, its scoring head, and its fingerprint.

    Build it with `loading.load_backbone`.
    """

    def __init__(
        self,
        *,
        name: str,
        model: nn.Module,
        config: Mapping[str, Any],
        weight_R: Tensor,
        bias: Tensor | None,
        text: TextEncoder,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.name = name
        self.text = text
        self.device = device
        self.dtype = dtype
        self.weight_R = weight_R.detach().float().to(device)
        self.bias = None if bias is None else bias.detach().float().reshape(()).to(device)
        self._config = config
        self._model = model.requires_grad_(False).eval().to(device)
        self._forward: Callable[..., Any] = self._model
        self._looks_ahead = any(config.get(name) is value for name, value in LOOKS_AHEAD.items())
        self.width_R = int(self.weight_R.shape[0])
        self.fingerprint = self.compute_fingerprint()

    def compile(self, backend: str = "inductor") -> None:
        """Compile the forward pass, and warm it up: minutes, once a process.

        Shapes are dynamic, so two programs serve all batches: one text, and several. They are made
        here, not while a caller waits. (Texts of one token would make others.)

        Args:
            backend: of torch.compile.
        """
        self._forward = torch.compile(self._model, dynamic=True, backend=backend)
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
        """RTEs of a padded batch.

        Padding is on the right, where no real token of a causal model sees it: its states are those
        of the unpadded text, up to rounding, without a mask, which would take attention's slower
        kernel. Only a model whose configuration says that it looks ahead gets one.

        Args:
            batch: token ids, at least one each.
            states: of which texts all tokens' states are wanted too; None: of none.
        """
        lengths = [len(ids) for ids in batch]
        longest = max(lengths)
        ids_NS = torch.zeros(len(batch), longest, dtype=torch.long)
        mask_NS = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, ids in enumerate(batch):
            ids_NS[row, : len(ids)] = torch.tensor(ids)
            mask_NS[row, : len(ids)] = 1
        masked = self._looks_ahead and min(lengths) < longest
        out = self._forward(
            input_ids=ids_NS.to(self.device),
            attention_mask=mask_NS.to(self.device) if masked else None,
            use_cache=False,
        )
        hidden_NSR: Tensor = out.last_hidden_state
        found: list[Encoded] = []
        for row, length in enumerate(lengths):
            wanted = states is not None and states[row]
            states_SR = hidden_NSR[row, :length].clone() if wanted else None
            found.append(Encoded(hidden_NSR[row, length - 1].float().clone(), states_SR))
        return found

    def compute_fingerprint(self) -> str:
        """SHA-256 over all that changes a reward; a million updates must leave it as it is."""
        digest = hashlib.sha256()

        def add(label: str, value: bytes | memoryview) -> None:
            digest.update(f"{label}:{len(value)}:".encode())
            digest.update(value)

        for name, tensor in sorted(self._model.state_dict().items()):
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
        }
        add("rule", json.dumps(rule, sort_keys=True).encode())
        return digest.hexdigest()


def _raw(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)
