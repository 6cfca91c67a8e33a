"""Hidden states in 8 bits through the attention, without ever being floats as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from r2m_service.modeling.attention import OnlinePool, Pooled, chunk_for


@dataclass(frozen=True, slots=True)
class Quantized:
    """h[s, p] = q[s, p] · token[s] · channel[p].

    Attributes:
        q_SP: int8.
        token_S, channel_P: float32, finite, at least 0.
    """

    q_SP: Tensor
    token_S: Tensor
    channel_P: Tensor

    def dense(self) -> Tensor:
        """h_SP in float32."""
        return self.q_SP.float() * self.token_S[:, None] * self.channel_P


def pool_quantized(
    states: Quantized, u_P: Tensor, z_P: Tensor | None = None, *, chunk: int | None = None
) -> Pooled:
    """C (and j) of one sample's states in one pass, as `attention.pool`.

    The channel scales go into u and z before the pass and into c and j after it, since
    h·u = (q·token)·(channel·u): of the states themselves only a chunk of q·token is float32.
    """
    # Scales may be of any size; with the largest channel's put to the tokens, the products with u
    # neither overflow nor vanish where those of h do not.
    peak = states.channel_P.max()
    channel_P = states.channel_P / peak.where(peak > 0, peak.new_ones(()))
    token_S = states.token_S * peak
    chunk = chunk or chunk_for(u_P.device)
    sums = OnlinePool(channel_P * u_P, None if z_P is None else channel_P * z_P)
    for q_SP, scale_S in zip(states.q_SP.split(chunk), token_S.split(chunk), strict=True):
        sums.update(q_SP.float().mul_(scale_S[:, None]))
    pooled = sums.finish()
    return Pooled(channel_P * pooled.c_P, None if pooled.j_P is None else channel_P * pooled.j_P)
