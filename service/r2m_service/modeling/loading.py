"""Which models can be served, and how one becomes a `Backbone`.

Any Hugging Face sequence classifier with one label on a decoder, or a causal LM plus a head file.
Everything else is refused with its name: transformers would often go on with random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
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

from r2m_service.modeling.backbone import Backbone
from r2m_service.modeling.text import TextEncoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NEEDS_EAGER = {"gemma2"}
"""Model types whose logit soft-capping the fused attention kernels do not know."""


class ModelRefusedError(ValueError):
    """A model that this service cannot serve: which, why, and what it takes instead."""


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
