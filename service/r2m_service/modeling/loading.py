"""How a checkpoint becomes a `Backbone`: weights, tokenizer, limits, and a check of the whole.

`checkpoints` says which models can be served, `verification` compares what was built with the
model's own forward pass before it scores anything.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging

from r2m_service.modeling import TEMPLATE_DATE
from r2m_service.modeling.backbone import Backbone
from r2m_service.modeling.checkpoint_files import (
    ModelRefusedError,
    first_line,
    has_tokenizer,
    headers_of,
)
from r2m_service.modeling.checkpoints import (
    ADAPTER_PREFIX,
    ADAPTER_WEIGHTS,
    Checkpoint,
    Kind,
    inspect_checkpoint,
)
from r2m_service.modeling.head_files import own_head, own_head_names, read_head
from r2m_service.modeling.limits import (
    embedded_ids,
    max_length_of,
    pad_of,
    rope_switches,
    width_of,
    within_table,
)
from r2m_service.modeling.readers import PooledReader, Reader, TokenReader, segments_of
from r2m_service.modeling.text import TextEncoder
from r2m_service.modeling.verification import mismatch, own_reward, probes_of, settle

__all__ = ["ModelRefusedError", "load_backbone", "pick_device", "pick_dtype"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NEEDS_EAGER = {"gemma2"}
"""Model types whose logit soft-capping the fused attention kernels do not know."""

HEAD_MODULES = ("score.", "classifier.", "value_head.", "v_head.", "head.")
"""Where scoring heads lie; a tensor there that is not loaded changes every reward."""


def load_backbone(
    model: str,
    *,
    head_file: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    max_length: int | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    template_date: date = TEMPLATE_DATE,
    say: Callable[[str], None] = lambda _: None,
) -> Backbone:
    """Load a frozen reward model.

    Args:
        model: a folder or hub id of a reward model (docs/models.md lists which), or of a decoder.
        head_file: for a decoder: safetensors with `head.weight` (1, R) and maybe `head.bias` (1),
            or LLaMA-Factory's value_head.safetensors.
        device: `auto` takes a GPU where there is one.
        dtype: `auto` is bfloat16 on a GPU, float32 on a CPU.
        max_length: tokens; default: the lesser of what model and tokenizer state.
        trust_remote_code: run code that comes with the model. Never on by itself.
        chat_template: name of the template to use, where the tokenizer has several.
        template_date: what a chat template writes in place of the current day.
        say: gets progress, a sentence each; what an operator should know is `Backbone.notes`.

    Raises:
        ModelRefusedError: another kind of model, a missing or unfit head, no such folder, or a
            model whose own forward pass gives other rewards than its head on H_last.
    """
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    checkpoint = inspect_checkpoint(model, head_file=head_file, trust_remote_code=trust_remote_code)
    notes = list(checkpoint.notes)
    say(f"loading {model} ({kind} on {where})")
    try:
        tokenizer = _tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    except ModelRefusedError:
        raise
    except Exception as error:  # a file that is cut short, a library that is missing, own code
        raise ModelRefusedError(f"cannot load {model!r}: {first_line(error)}") from error
    limit = max_length_of(checkpoint.config, tokenizer, max_length, notes)
    # Before the weights: a head that does not fit is found at once.
    head = None if head_file is None else read_head(head_file, width_of(checkpoint.config))
    options: dict[str, Any] = {
        "config": checkpoint.config,
        "dtype": DTYPES[kind],
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # `_refuse_missing` names them
        "trust_remote_code": trust_remote_code,
    }
    if getattr(checkpoint.config, "model_type", "") in NEEDS_EAGER:
        options["attn_implementation"] = "eager"
    try:
        whole = _weights(checkpoint, options, notes).eval().to(where)
        base: nn.Module = whole.base_model
        rows = embedded_ids(model, base, tokenizer)
        limit = within_table(limit, base, asked=max_length)
        pad = pad_of(checkpoint.config)
        if pad is not None and not 0 <= pad < rows:
            pad = None  # of no token: some configurations say so with -1
        probes = probes_of(tokenizer, limit, pad)
        if checkpoint.kind is Kind.CLASSIFIER:
            reader, weight_R, bias = _as_its_class(checkpoint, whole, tokenizer, probes, where)
        else:
            reader = TokenReader(base, None)
            weight_R, bias = head or own_head(checkpoint, width_of(checkpoint.config))
        say("hashing weights")
        backbone = Backbone(
            name=model,
            reader=reader,
            config=checkpoint.written,
            weight_R=weight_R,
            bias=bias,
            text=TextEncoder(
                tokenizer,
                limit,
                rows,
                chat_template=chat_template,
                template_date=template_date,
                pairs=isinstance(reader, PooledReader),
                separator=reader.separator if isinstance(reader, PooledReader) else None,
            ),
            device=where,
            dtype=DTYPES[kind],
            pad=0 if pad is None else pad,
            switches=rope_switches(checkpoint.config),
        )
        # A class that looks for padding by its id finds none in a batch.
        backbone.alone = pad is None and isinstance(reader, PooledReader)
        notes += settle(backbone, probes)
    except ModelRefusedError:
        raise
    except Exception as error:
        # Weights that are cut short, of other shapes or too large for the memory; a quantisation
        # whose library is missing; whatever a model's own code raises.
        raise ModelRefusedError(
            f"cannot load {model!r} in {kind} on {where}: {first_line(error)}"
        ) from error
    backbone.notes = tuple(notes)
    return backbone


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
        raise ModelRefusedError(f"device {device!r} cannot be used: {first_line(error)}") from None
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


def _tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    """The tokenizer; an adapter's own one also says which token its trainer padded with."""
    adapter = checkpoint.adapter
    own = adapter is not None and has_tokenizer(adapter)
    source = adapter if adapter is not None and own else checkpoint.source
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    config = checkpoint.config.get_text_config()
    if adapter is not None and checkpoint.kind is Kind.CLASSIFIER:
        if own:
            config.pad_token_id = tokenizer.pad_token_id
        elif config.pad_token_id is None:
            raise ModelRefusedError(
                f"{adapter!r} has no tokenizer, and {checkpoint.source!r} no pad_token_id: which "
                "token the adapter was trained to be read at is not known. Save the tokenizer that "
                "it was trained with into its folder"
            )
    return tokenizer


def _weights(checkpoint: Checkpoint, options: dict[str, Any], notes: list[str]) -> Any:
    """The model with its weights, and with its adapter merged into them.

    Raises:
        ModelRefusedError: weights are missing, or the checkpoint holds a head that is not loaded.
    """
    auto: Any = AutoModel
    if checkpoint.kind is Kind.CLASSIFIER:
        auto = AutoModelForSequenceClassification
    elif checkpoint.adapter is not None:  # it names its weights as those of a causal LM
        auto = AutoModelForCausalLM
    verbosity = logging.get_verbosity()
    # Its report of missing and unexpected weights would contradict what is decided here.
    logging.set_verbosity_error()
    try:
        whole, info = auto.from_pretrained(checkpoint.source, **options)
    finally:
        logging.set_verbosity(verbosity)
    brought = _brought(checkpoint)
    _refuse_missing(checkpoint, info, but={name.removeprefix(ADAPTER_PREFIX) for name in brought})
    _refuse_unloaded(checkpoint, whole, info, notes)
    return _merged(checkpoint, whole, brought)


def _brought(checkpoint: Checkpoint) -> set[str]:
    """Names of an adapter's tensors; the head that it was trained with is one of them."""
    if checkpoint.adapter is None:
        return set()
    return set(headers_of(checkpoint.adapter, ADAPTER_WEIGHTS, download=True).shapes)


def _as_its_class(
    checkpoint: Checkpoint,
    whole: Any,
    tokenizer: Any,
    probes: Mapping[str, tuple[int, ...]],
    device: torch.device,
) -> tuple[Reader, Tensor, Tensor | None]:
    """How a …ForSequenceClassification is read, and its head: weight (R,) and bias.

    A decoder's class reads one token's state, which its base model gives alone. Where that does
    not give the class's own rewards, the class itself runs, the identity in place of its last
    layer.

    Raises:
        ModelRefusedError: neither of the two gives its own rewards.
    """
    for config in (whole.config, whole.config.get_text_config()):
        config.use_cache = False
    name, head = _last_layer(checkpoint, whole)
    weight_R, bias = head.weight[0].detach().clone(), head.bias
    separator = _separator(checkpoint, tokenizer)
    own = {probe: own_reward(whole, ids, device, separator) for probe, ids in probes.items()}
    token = TokenReader(whole.base_model, pad_of(whole.config))
    why = mismatch(token, weight_R, bias, probes, own, device)
    if why is None:
        return token, weight_R, bias
    parent, _, leaf = name.rpartition(".")
    setattr(whole.get_submodule(parent), leaf, nn.Identity())
    pooled = PooledReader(whole, whole.base_model, separator)
    if mismatch(pooled, weight_R, bias, probes, own, device) is not None:
        raise ModelRefusedError(
            f"{checkpoint.name!r} ({type(whole).__name__}) is more than a linear head on one "
            f"state, which is all that is served: {why}"
        )
    return pooled, weight_R, bias


def _merged(checkpoint: Checkpoint, whole: Any, brought: set[str]) -> Any:
    """The model with its adapter in its weights.

    Raises:
        ModelRefusedError: the adapter has tensors that no part of the model takes.
    """
    if checkpoint.adapter is None:
        return whole
    with warnings.catch_warnings():
        # Names of transformers that a release of PEFT still uses are not the operator's concern.
        warnings.simplefilter("ignore", FutureWarning)
        # PEFT only warns of weights that the adapter lacks, and goes on with random numbers.
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        peft = importlib.import_module("peft")  # an extra: `checkpoints` has looked for it
        adapted = peft.PeftModel.from_pretrained(whole, checkpoint.adapter)
        # PEFT drops these without a word.
        unloaded = sorted(brought - peft.get_peft_model_state_dict(adapted).keys())
        if unloaded:
            raise ModelRefusedError(
                f"{checkpoint.name!r} holds {unloaded[0]!r}, which {type(whole).__name__} does not "
                "load: its rewards would not be those that it was trained for"
            )
        return adapted.merge_and_unload()


def _last_layer(checkpoint: Checkpoint, whole: Any) -> tuple[str, nn.Linear]:
    inside = {id(module) for module in whole.base_model.modules()}
    found = [
        (name, module)
        for name, module in whole.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1 and id(module) not in inside
    ]
    if len(found) != 1:
        raise ModelRefusedError(
            f"{checkpoint.name!r} ({type(whole).__name__}) has {len(found)} linear layers with one "
            "output above its base model; a reward model has one"
        )
    return found[0]


def _separator(checkpoint: Checkpoint, tokenizer: Any) -> int | None:
    """Id of the token that ends a segment, where the model embeds segments.

    Raises:
        ModelRefusedError: the tokenizer numbers segments by another rule.
    """
    if (getattr(checkpoint.config, "type_vocab_size", 0) or 0) < 2:
        return None
    pair = tokenizer("a", "b")
    stated = pair.get("token_type_ids")
    if not stated or not any(stated):
        return None
    separator = tokenizer.sep_token_id
    ids_NS = torch.tensor([pair["input_ids"]])
    if separator is None or segments_of(ids_NS, separator)[0].tolist() != list(stated):
        raise ModelRefusedError(
            f"{checkpoint.name!r}: its tokenizer numbers segments {list(stated)}; 0 up to the "
            "first separator and 1 behind it is what is served"
        )
    return int(separator)


def _refuse_missing(checkpoint: Checkpoint, info: Any, *, but: set[str]) -> None:
    for name, stored, made in sorted(info["mismatched_keys"]):
        if name not in but:
            raise ModelRefusedError(
                f"{checkpoint.name!r} holds {name!r} of shape {list(stored)}, its config.json asks "
                f"for {list(made)}: they do not belong together"
            )
    missing = sorted(name for name in info["missing_keys"] if name not in but)
    if missing:
        # transformers would go on with random numbers in their place.
        raise ModelRefusedError(
            f"{checkpoint.name!r} lacks {len(missing)} of its weights, first {missing[0]!r}: its "
            "rewards would be random"
        )


def _refuse_unloaded(
    checkpoint: Checkpoint, loaded: nn.Module, info: Any, notes: list[str]
) -> None:
    """Weights on disk that the class has no place for: another class wrote them."""
    unloaded = sorted(
        name
        for name in info["unexpected_keys"]
        if not name.startswith("lm_head.") and name not in own_head_names(checkpoint)
    )
    heads = [name for name in unloaded if name.startswith(HEAD_MODULES)]
    if heads:
        raise ModelRefusedError(
            f"{checkpoint.name!r} holds {heads[0]!r}, which {type(loaded).__name__} does not load: "
            "its rewards would not be those that it was trained for"
        )
    if unloaded:
        notes.append(
            f"{len(unloaded)} weights of the checkpoint are not part of {type(loaded).__name__}, "
            f"first {unloaded[0]!r}"
        )
