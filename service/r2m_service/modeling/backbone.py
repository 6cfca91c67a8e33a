"""The frozen reward LLM: token ids become the reward token embedding (RTE), H_last.

Takes any Hugging Face sequence classifier with one label, or a causal LM plus a head file. Its
own scoring head is read out once (`weight_R`, `bias`) and applied in float32; the backbone runs in
its own dtype and is never written to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
)

from r2m_service.modeling.text import TextEncoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NEEDS_EAGER = {"gemma2"}
"""Model types whose logit soft-capping the fused attention kernels do not know."""
TRUNCATION_RULE = "refuse"
VOLATILE_CONFIG = ("_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype")


class ModelRefusedError(ValueError):
    """A model that this service cannot serve: which, why, and what it takes instead."""


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

    Build it with `load_backbone`.
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
        self.width_R = int(self.weight_R.shape[0])
        self.fingerprint = self.compute_fingerprint()

    def vanilla(self, rte_NR: Tensor) -> Tensor:
        """The frozen model's own rewards, w₀·H_last + b₀."""
        rewards_N = rte_NR @ self.weight_R
        return rewards_N if self.bias is None else rewards_N + self.bias

    @torch.inference_mode()
    def encode(
        self, batch: Sequence[Sequence[int]], *, states: Sequence[bool] | None = None
    ) -> list[Encoded]:
        """RTEs of a padded batch.

        Padding is on the right and masked, so that no real token sees it: a causal model's states
        are those of the unpadded text, up to rounding.

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
        padded = min(lengths) < longest
        out = self._model(
            input_ids=ids_NS.to(self.device),
            # Without padding, causal attention needs no mask and takes its faster kernel.
            attention_mask=mask_NS.to(self.device) if padded else None,
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


def load_backbone(
    model: str,
    *,
    head_file: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    max_length: int | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Backbone:
    """Load a frozen reward model.

    Args:
        model: a folder or a hub id of a sequence classifier with one label, or of a causal LM.
        head_file: for a causal LM: safetensors with `head.weight` (1, R), maybe `head.bias` (1).
        device: `auto` takes a GPU where there is one.
        dtype: `auto` is bfloat16 on a GPU, float32 on a CPU.
        max_length: tokens; default: what model and tokenizer state.
        trust_remote_code: run code that comes with the model. Never on by itself.
        say: hears of progress.

    Raises:
        ModelRefusedError: another kind of model, a missing or unfit head, no such folder.
    """
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    if Path(model).is_absolute() and not Path(model).is_dir():
        raise ModelRefusedError(f"there is no folder {model}")
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    say(f"loading {model} ({kind} on {where})")
    try:
        # As written in its file: defaults that another transformers release adds are not its own.
        written: dict[str, Any] = PreTrainedConfig.get_config_dict(model)[0]
        config: Any = AutoConfig.from_pretrained(model, **common)
        tokenizer: Any = AutoTokenizer.from_pretrained(model, **common)
        loaded = {"dtype": DTYPES[kind], "output_loading_info": True, **common}
        if getattr(config, "model_type", "") in NEEDS_EAGER:
            loaded["attn_implementation"] = "eager"
        base, weight_R, bias = _load(model, config, head_file, loaded)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        # The last two: weights that are cut short, of other shapes, or too large for the memory.
        if isinstance(error, ModelRefusedError):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelRefusedError(f"cannot load {model!r}: {first}") from error
    limit = _max_length(config, tokenizer, max_length)
    rows = _check_tokenizer(model, base, tokenizer)
    say("hashing weights")
    return Backbone(
        name=model,
        model=base,
        config=written,
        weight_R=weight_R,
        bias=bias,
        text=TextEncoder(tokenizer, limit, rows),
        device=where,
        dtype=DTYPES[kind],
    )


def pick_device(device: str) -> torch.device:
    """The device by name; `auto` takes a GPU where there is one.

    Raises:
        ModelRefusedError: a name that is none, or a device that this machine or build lacks.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
        # What a build without CUDA says comes with the first tensor, and as another error.
        torch.zeros(1, device=where).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelRefusedError(f"device {device!r} cannot be used: {first}") from None
    return where


def pick_dtype(dtype: str, where: torch.device) -> str:
    """The dtype by name; `auto` is bfloat16 on a GPU, float32 on a CPU.

    Raises:
        ModelRefusedError: a name that is none.
    """
    kind = ("bfloat16" if where.type == "cuda" else "float32") if dtype == "auto" else dtype
    if kind not in DTYPES:
        raise ModelRefusedError(f"dtype {kind!r} is not one of auto, {', '.join(DTYPES)}")
    return kind


def brings_head(model: str, config: Any, head_file: Path | None) -> bool:
    """Whether a model has its own scoring head (or needs the file), by its configuration alone.

    Raises:
        ModelRefusedError: a kind that is not served, or one that the head file does not go with.
    """
    architectures: list[str] = list(getattr(config, "architectures", None) or [])
    named = ", ".join(architectures) or type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ModelRefusedError(f"{model!r} is an encoder-decoder ({named}); a causal LM is needed")
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        if head_file is not None:
            raise ModelRefusedError(
                f"{model!r} ({named}) has its own scoring head: give no head file"
            )
        if config.num_labels != 1:
            raise ModelRefusedError(
                f"{model!r} ({named}) has {config.num_labels} labels; a reward model has one"
            )
        return True
    if any(name.endswith("ForCausalLM") for name in architectures):
        if head_file is None:
            raise ModelRefusedError(
                f"{model!r} is a causal LM ({named}) without a scoring head: give one with --head"
            )
        return False
    raise ModelRefusedError(
        f"{model!r} is of kind {named}; a …ForSequenceClassification with one label, or a "
        "…ForCausalLM with a head file, is needed"
    )


def _load(
    model: str, config: Any, head_file: Path | None, loaded: dict[str, Any]
) -> tuple[nn.Module, Tensor, Tensor | None]:
    if brings_head(model, config, head_file):
        whole, info = AutoModelForSequenceClassification.from_pretrained(model, **loaded)
        _refuse_missing(model, info)
        score = getattr(whole, "score", None)
        if not isinstance(score, nn.Linear):
            raise ModelRefusedError(
                f"{model!r} ({type(whole).__name__}) has no linear `score` on a causal backbone; "
                "decoder reward models such as LlamaForSequenceClassification do"
            )
        bias: Tensor | None = score.bias
        return whole.base_model, score.weight[0], bias
    assert head_file is not None
    # Before the weights: a head that does not fit is found at once.
    weight_R, bias = _read_head(head_file, int(config.hidden_size))
    base, info = AutoModel.from_pretrained(model, **loaded)
    _refuse_missing(model, info)
    return base, weight_R, bias


def _refuse_missing(model: str, info: Any) -> None:
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers would go on with random numbers in their place.
        raise ModelRefusedError(
            f"{model!r} lacks {len(missing)} of its weights, first {missing[0]!r}: its rewards "
            "would be random"
        )


def _read_head(path: Path, width_R: int) -> tuple[Tensor, Tensor | None]:
    if not path.is_file():
        raise ModelRefusedError(f"no head file at {path}")
    try:
        tensors = load_file(path)
    except Exception as error:
        raise ModelRefusedError(f"{path} is no safetensors file: {error}") from None
    weight = tensors.get("head.weight")
    if weight is None or tuple(weight.shape) != (1, width_R):
        found = {name: list(t.shape) for name, t in tensors.items()}
        raise ModelRefusedError(
            f"{path} needs `head.weight` of shape [1, {width_R}], it has {found}"
        )
    bias = tensors.get("head.bias")
    if bias is not None and bias.numel() != 1:
        raise ModelRefusedError(f"{path}: `head.bias` holds one number, got {bias.numel()}")
    if not all(bool(torch.isfinite(t).all()) for t in (weight, bias) if t is not None):
        raise ModelRefusedError(f"{path} holds NaN or infinity")
    return weight[0], bias


def _max_length(config: Any, tokenizer: Any, asked: int | None) -> int:
    limits = [int(getattr(config, "max_position_embeddings", 0) or 0)]
    limits.append(int(min(getattr(tokenizer, "model_max_length", 0) or 0, 1 << 30)))
    known = [limit for limit in limits if 0 < limit < 1 << 30]
    most = min(known, default=1 << 20)
    if asked is None:
        return most
    if not 1 <= asked <= most:
        raise ModelRefusedError(f"max length is between 1 and the model's {most}, got {asked}")
    return asked


def _check_tokenizer(model: str, base: nn.Module, tokenizer: Any) -> int:
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


def _raw(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)
