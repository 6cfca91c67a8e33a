"""What a folder or a hub repository holds: which kind of reward model, before its weights load.

`inspect_checkpoint` reads the configuration, the names and shapes in the safetensors headers, and
an adapter's configuration. What cannot be served is refused by its name: transformers would often
go on with random numbers. docs/models.md is the list for users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from r2m_service.modeling.checkpoint_files import (
    ENCODER_HEAD_NAMES,
    HEAD_NAMES,
    WEIGHTS,
    WEIGHTS_INDEX,
    Headers,
    ModelRefusedError,
    file_of,
    first_line,
    headers_of,
    read_json,
    refuse_pointers,
)

OPENRLHF_CLASSES = {"RewardModel", "LLMForSequenceRegression"}
"""Architectures that OpenRLHF writes; transformers has no such classes."""

VALUE_HEAD_FILE = "value_head.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PREFIX = "base_model.model."
"""Of a base model's tensor among those of an adapter."""

WHOLE_MODEL = (WEIGHTS_INDEX, WEIGHTS, "pytorch_model.bin.index.json", "pytorch_model.bin")


class Kind(StrEnum):
    """How a checkpoint becomes a reward model.

    `CLASSIFIER`: by transformers' own …ForSequenceClassification class, which also decides which
    token's state is read. `REGRESSION`: a decoder whose head lies in the same file under a name
    that no class of transformers loads (OpenRLHF, TRL's value head). `DECODER`: a decoder with a
    head file of its own. The last two read the last token.
    """

    CLASSIFIER = "classifier"
    REGRESSION = "regression"
    DECODER = "decoder"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What will be loaded, and how.

    Attributes:
        source: folder or hub id of the weights: the base model's where `adapter` is given.
        written: the configuration as it is written in its file; defaults that another release of
            transformers adds are not part of it.
        config: the same, parsed.
        head: name of the head's tensor, for `REGRESSION`.
        adapter: folder or hub id of a PEFT adapter, merged when the model loads.
        notes: facts that an operator should read in the log.
    """

    source: str
    kind: Kind
    written: Mapping[str, Any]
    config: Any
    head: str | None = None
    adapter: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the operator named: the adapter, where there is one."""
        return self.adapter or self.source


def inspect_checkpoint(
    model: str,
    *,
    head_file: Path | None = None,
    trust_remote_code: bool = False,
    download: bool = True,
) -> Checkpoint:
    """Which kind of reward model a folder or hub id holds.

    Args:
        model: folder or hub id.
        head_file: the scoring head that the operator gave.
        trust_remote_code: run code that comes with the model.
        download: fetch what is not in the hub's cache yet; without it, only what is here is read.

    Raises:
        ModelRefusedError: a kind that is not served, or one that the head file does not go with.
    """
    refuse_pointers(model)
    adapter = _adapter(model, download=download)
    source = model if adapter is None else str(adapter["base_model_name_or_path"])
    if adapter is not None:
        refuse_pointers(source)
    try:
        written: dict[str, Any] = PreTrainedConfig.get_config_dict(source)[0]
        config: Any = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # the configuration may be anything, and bring code of its own
        whose = "" if adapter is None else f", the base model of the adapter {model!r}"
        raise ModelRefusedError(f"cannot load {source!r}{whose}: {first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise ModelRefusedError(
            f"{model!r} is an encoder-decoder ({named(config)}); a decoder, or an encoder with a "
            "…ForSequenceClassification class, is needed"
        )
    _refuse_own_code(model, written, trust_remote_code=trust_remote_code)
    if adapter is not None:
        return _of_adapter(model, source, written, config, head_file, download=download)
    names = (*_head_names(written), *ENCODER_HEAD_NAMES)
    headers = headers_of(source, heads=names, download=download)
    return _of_weights(model, written, config, headers, head_file)


def named(config: Any) -> str:
    """The classes that a configuration names, else its own class."""
    return ", ".join(getattr(config, "architectures", None) or []) or type(config).__name__


def _head_names(written: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a decoder's head, first the one that OpenRLHF states in the configuration."""
    prefix = written.get("value_head_prefix")
    return (f"{prefix}.weight", *HEAD_NAMES) if prefix else HEAD_NAMES


def _of_weights(
    model: str,
    written: Mapping[str, Any],
    config: Any,
    headers: Headers,
    head_file: Path | None,
) -> Checkpoint:
    architectures: list[str] = list(getattr(config, "architectures", None) or [])
    classifies = any(name.endswith("ForSequenceClassification") for name in architectures)
    names = _head_names(written)
    head = headers.head(names)
    if head_file is not None:
        if classifies or head is not None:
            raise ModelRefusedError(
                f"{model!r} ({named(config)}) has its own scoring head: start without --head"
            )
        if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            raise ModelRefusedError(
                f"{model!r} ({named(config)}) is an encoder, and --head is for decoders, which are "
                "read at their last token: take a …ForSequenceClassification with one label"
            )
        return Checkpoint(model, Kind.DECODER, written, config)
    openrlhf = bool(OPENRLHF_CLASSES.intersection(architectures)) or names is not HEAD_NAMES
    if classifies or (head is not None and head[0] == "score.weight" and not openrlhf):
        # The weights decide where they are known: transformers takes a configuration that says
        # nothing of labels for one of two labels.
        layer = head or headers.head(ENCODER_HEAD_NAMES)
        labels = layer[1] if layer else config.num_labels
        if layer is None and not {"id2label", "num_labels"} & written.keys():
            raise ModelRefusedError(
                f"{model!r} ({named(config)}) says nowhere how many labels it has: write "
                '"num_labels": 1 into its config.json if it has one, or save it with safetensors'
            )
        if labels != 1:
            raise ModelRefusedError(
                f"{model!r} ({named(config)}) has {labels} labels; a reward model has one"
            )
        config.num_labels = 1
        return Checkpoint(model, Kind.CLASSIFIER, written, config)
    if head is not None:
        if head[1] != 1:
            raise ModelRefusedError(
                f"{model!r} ({named(config)}) has {head[1]} rows in {head[0]}; a reward model has "
                "one"
            )
        notes = ()
        if normalization(written) is not None:
            notes = ("its configuration has normalize_reward: rewards are (r - mean) / std",)
        return Checkpoint(model, Kind.REGRESSION, written, config, head=head[0], notes=notes)
    if openrlhf:
        raise ModelRefusedError(
            f"{model!r} ({named(config)}) is a reward model of OpenRLHF, and none of "
            f"{', '.join(names)} is in its safetensors files: save it with safetensors"
        )
    beside = Path(model) / VALUE_HEAD_FILE
    file = str(beside) if beside.is_file() else "FILE"
    raise ModelRefusedError(
        f"{model!r} ({named(config)}) has no scoring head in safetensors files: give one with "
        f"--head {file}, or take a …ForSequenceClassification with one label"
    )


def _of_adapter(
    model: str,
    source: str,
    written: Mapping[str, Any],
    config: Any,
    head_file: Path | None,
    *,
    download: bool,
) -> Checkpoint:
    if find_spec("peft") is None:
        raise ModelRefusedError(
            f"{model!r} is a PEFT adapter, which needs the package peft: pip install "
            "'r2m-serve[peft]'"
        )
    weights = headers_of(model, ADAPTER_WEIGHTS, download=download)
    if not weights.shapes and download:
        raise ModelRefusedError(
            f"{model!r} is a PEFT adapter without {ADAPTER_WEIGHTS}: save it with safetensors"
        )
    if "prompt_embeddings" in weights.shapes:
        raise ModelRefusedError(
            f"{model!r} is an adapter that adds prompts to a text; one that merges into the "
            "weights (LoRA and kin) is needed"
        )
    # PEFT saves the head that was trained with the adapter under the base model's name for it.
    own = {name.removeprefix(ADAPTER_PREFIX): shape for name, shape in weights.shapes.items()}
    head = Headers(own).head((HEAD_NAMES[0], *ENCODER_HEAD_NAMES))
    if head is None and head_file is None:
        beside = Path(model) / VALUE_HEAD_FILE
        file = str(beside) if beside.is_file() else "FILE"
        raise ModelRefusedError(
            f"{model!r} is a PEFT adapter without a scoring head among its weights: give one with "
            f"--head {file}, or train it with modules_to_save of the head, as in ['score']"
        )
    if head is not None and head_file is not None:
        raise ModelRefusedError(
            f"{model!r} is a PEFT adapter with its own scoring head: start without --head"
        )
    if head is not None and head[1] != 1:
        raise ModelRefusedError(
            f"{model!r} is a PEFT adapter with {head[1]} rows in {head[0]}; a reward model has one"
        )
    if head is not None:
        config.num_labels = 1
    return Checkpoint(
        source,
        Kind.DECODER if head is None else Kind.CLASSIFIER,
        written,
        config,
        adapter=model,
        notes=(f"the adapter {model} is merged into {source}",),
    )


def normalization(written: Mapping[str, Any]) -> tuple[float, float] | None:
    """OpenRLHF's mean and standard deviation of rewards, where the configuration applies them."""
    if not written.get("normalize_reward") or "mean" not in written or "std" not in written:
        return None
    try:
        mean, std = float(written["mean"]), float(written["std"])
    except (TypeError, ValueError):
        mean, std = nan, nan
    if not (isfinite(mean) and 0 < std < inf):
        raise ModelRefusedError(
            "normalize_reward needs two numbers in config.json, mean, and std over 0; it has "
            f"{written['mean']!r} and {written['std']!r}"
        )
    return mean, std


def _adapter(model: str, *, download: bool) -> dict[str, Any] | None:
    """The configuration of a PEFT adapter; None: the model is a whole one."""
    path = file_of(model, ADAPTER_CONFIG, download=download)
    if path is None:
        return None
    beside = file_of(model, "config.json", download=download)
    if beside and any(file_of(model, name, download=download) for name in WHOLE_MODEL):
        # transformers would apply the adapter to weights that may have it in them already.
        raise ModelRefusedError(
            f"{model!r} holds a whole model and a PEFT adapter ({ADAPTER_CONFIG}): take out of it "
            "the files of the one that is not to be served"
        )
    adapter = read_json(path)
    if not adapter.get("base_model_name_or_path"):
        raise ModelRefusedError(f"{path} names no base_model_name_or_path")
    return adapter


def _refuse_own_code(model: str, written: Mapping[str, Any], *, trust_remote_code: bool) -> None:
    """A checkpoint whose scoring is its own code is another model without that code."""
    own = written.get("auto_map") or {}
    if "AutoModelForSequenceClassification" in own and not trust_remote_code:
        raise ModelRefusedError(
            f"{model!r} computes its rewards by its own code ("
            f"{own['AutoModelForSequenceClassification']}, auto_map in config.json), which is not "
            "run without --trust-remote-code; transformers' class of the same name may give other "
            "rewards. If you know that it does not, take that line out of config.json"
        )
