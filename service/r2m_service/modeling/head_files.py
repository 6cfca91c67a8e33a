"""Scoring heads as files: beside a decoder's weights, or given by the operator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from r2m_service.modeling.checkpoint_files import (
    HEAD_NAMES,
    ModelRefusedError,
    first_line,
    read_tensors,
)
from r2m_service.modeling.checkpoints import Checkpoint, normalization


def own_head(checkpoint: Checkpoint, width_R: int) -> tuple[Tensor, Tensor | None]:
    """The head that lies beside the decoder's weights, normalized as its configuration says."""
    names = own_head_names(checkpoint)
    tensors = read_tensors(checkpoint.source, names)
    weight_R, bias = _checked_head(checkpoint.source, tensors, names[0], width_R)
    scale = normalization(checkpoint.written)
    if scale is None:
        return weight_R, bias
    mean, std = scale
    shifted = torch.tensor(-mean) if bias is None else bias.float() - mean
    return weight_R.float() / std, shifted / std


def own_head_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of that head's weight, and of the bias that it may have."""
    if checkpoint.head is None:
        return ()
    return checkpoint.head, f"{checkpoint.head.removesuffix('weight')}bias"


def read_head(path: Path, width_R: int) -> tuple[Tensor, Tensor | None]:
    """The head of a file: weight (R,) and bias.

    Raises:
        ModelRefusedError: no such file, no head in it, one of another width, or one with NaN.
    """
    if not path.is_file():
        raise ModelRefusedError(f"no head file at {path}")
    try:
        tensors = load_file(path)
    except Exception as error:
        raise ModelRefusedError(f"{path} is no safetensors file: {first_line(error)}") from None
    name = next((name for name in reversed(HEAD_NAMES) if name in tensors), "head.weight")
    return _checked_head(str(path), tensors, name, width_R)


def _checked_head(
    path: str, tensors: Mapping[str, Tensor], name: str, width_R: int
) -> tuple[Tensor, Tensor | None]:
    weight = tensors.get(name)
    if weight is None or tuple(weight.shape) != (1, width_R):
        shapes = {name: list(t.shape) for name, t in tensors.items()}
        raise ModelRefusedError(f"{path} needs `{name}` of shape [1, {width_R}], it has {shapes}")
    bias = tensors.get(f"{name.removesuffix('weight')}bias")
    if bias is not None and bias.numel() != 1:
        raise ModelRefusedError(f"{path}: the head's bias holds one number, got {bias.numel()}")
    if not all(bool(torch.isfinite(t).all()) for t in (weight, bias) if t is not None):
        raise ModelRefusedError(f"{path} holds NaN or infinity")
    return weight[0], bias
