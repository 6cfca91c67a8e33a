"""One sample's states, wherever they come from, through the attention."""

from __future__ import annotations

from torch import Tensor

from r2m_service.application.engine_port import (
    Item,
)
from r2m_service.engine.states import quantized_states, require_finite, states_tensor
from r2m_service.modeling.attention import Pooled, pool
from r2m_service.modeling.backbone import Encoded
from r2m_service.modeling.quantized import pool_quantized


def pool_item(item: Item, encoded: Encoded, u_P: Tensor, z_P: Tensor | None = None) -> Pooled:
    """c (and j) of a sample: over the policy's states, or over the backbone's own.

    Raises:
        Problem: feedback_not_finite or reward_not_finite.
    """
    if item.feedback is not None and item.feedback.dtype == "int8":
        pooled = pool_quantized(quantized_states(item.feedback, u_P.device), u_P, z_P)
        require_finite(pooled.c_P, None)
        return pooled
    if item.feedback is not None:
        h_SP = states_tensor(item.feedback, u_P.device)
    else:
        assert encoded.states_SR is not None  # the embedder was asked for them
        h_SP = encoded.states_SR
    pooled = pool(h_SP, u_P, z_P)
    require_finite(pooled.c_P, h_SP)
    return pooled
