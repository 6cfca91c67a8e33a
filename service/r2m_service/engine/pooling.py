"""A few samples' states, wherever they come from, through the attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from r2m.errors import Problem
from r2m_service.application.scoring_items import Item
from r2m_service.engine.states import States, Uploads, not_finite, on_device
from r2m_service.modeling.attention import Pooled, pool
from r2m_service.modeling.backbone import Encoded
from r2m_service.modeling.quantized import Quantized, pool_quantized


def uploads_of(items: Sequence[Item], device: torch.device) -> Uploads:
    """Their states, on their way to a device."""
    return Uploads([item.feedback for item in items], device)


def pool_states(states: States, u_P: Tensor, z_P: Tensor | None = None) -> Pooled:
    """c (and j) of one sample's states, as they were stored."""
    if isinstance(states, Quantized):
        return pool_quantized(states, u_P, z_P)
    return pool(states, u_P, z_P)


def own_states(encoded: Encoded) -> Tensor:
    """The backbone's own, of a sample that brought none."""
    assert encoded.states_SR is not None  # the embedder was asked for them
    return encoded.states_SR


def why_not_finite(item: Item, encoded: Encoded, c_P: Tensor) -> Problem | None:
    """What is wrong with a sample whose reward is no number, if it is its states."""
    if item.feedback is None:
        return not_finite(c_P, encoded.states_SR)
    return not_finite(c_P, on_device(item.feedback, c_P.device))
