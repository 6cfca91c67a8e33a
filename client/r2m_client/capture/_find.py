"""Where in a policy, however wrapped, the decoder and its final norm are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
"""The one child of torch.compile's, FSDP's, activation checkpointing's and DDP's wrappers."""

NORMS = (
    "norm",  # Llama, Mistral, Qwen, Gemma, OLMo, Phi-3, StableLM, ...
    "final_layer_norm",  # GPT-NeoX, OPT
    "final_layernorm",  # Phi
    "ln_f",  # GPT-2, GPT-J, Falcon, BLOOM
    "norm_f",  # MPT, Mamba
    "final_norm",
)
"""What architectures call the norm behind the last layer, as a child of the decoder."""


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside its wrappers (the same object: hooks on it see every pass)."""
    while True:
        children = [name for name, _ in module.named_children()]
        if len(children) == 1 and children[0] in WRAPPERS:
            module = getattr(module, children[0])
        elif (base := _method(module, "get_base_model")) is not None:  # PEFT
            module = base()
        else:
            return module


def decoder(policy: nn.Module) -> nn.Module:
    """What runs the layers: the module whose forward gets the mask and ends in the norm.

    Raises:
        ValueError: an encoder-decoder.
    """
    inner = unwrapped(policy)
    config: Any = getattr(inner, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{type(inner).__name__} is an encoder-decoder, not a causal LM")
    find = _method(inner, "get_decoder")
    return inner if find is None else unwrapped(find())


def final_norm(policy: nn.Module, backbone: nn.Module, norm: str | nn.Module | None) -> nn.Module:
    """The norm behind the last layer: by architecture, or as given.

    Args:
        policy: as it was given, for a dotted name.
        backbone: its decoder.
        norm: a dotted name within the policy or the decoder, or the module itself.

    Raises:
        ValueError: it is not there, or not part of the decoder.
    """
    if norm is None:
        for name in NORMS:
            found = getattr(backbone, name, None)
            if isinstance(found, nn.Module):
                return unwrapped(found)
        parts = ", ".join(name for name, _ in backbone.named_children())
        raise ValueError(
            f"no final norm found in {type(backbone).__name__} (its parts: {parts}); "
            "name it: Recorder(policy, norm='model.norm')"
        )
    if isinstance(norm, str):
        starts = [unwrapped(policy), backbone]
        named = [found for start in starts if (found := _named(start, norm)) is not None]
        if not named:
            raise ValueError(f"{type(starts[0]).__name__} has no module named {norm!r}")
        norm = named[0]
    norm = unwrapped(norm)
    if not any(part is norm for part in backbone.modules()):
        raise ValueError(f"the norm given is not part of the policy's {type(backbone).__name__}")
    return norm


def width(backbone: nn.Module) -> int | None:
    """D_p as the policy's configuration has it, if it has one."""
    config: Any = getattr(backbone, "config", None)
    if config is not None and callable(text := getattr(config, "get_text_config", None)):
        config = text()
    found = getattr(config, "hidden_size", None)
    return int(found) if isinstance(found, int) else None


def _method(module: nn.Module, name: str) -> Callable[[], nn.Module] | None:
    return getattr(module, name, None)


def _named(start: nn.Module, name: str) -> nn.Module | None:
    module = start
    for part in name.split("."):
        found = getattr(unwrapped(module), part, None)
        if not isinstance(found, nn.Module):
            return None
        module = found
    return module
