"""One optimizer step of a head, from pooled states: gradients in closed form, then AdamW.

With g = ∂L/∂r, s = Σ_n g_n c_n and z = (1 − ω) W_v W_o w:

    ∂L/∂W_v = (1 − ω) s ⊗ (W_o w)        ∂L/∂W_o = (1 − ω) (W_vᵀ s) ⊗ w
    ∂L/∂w   = (1 − ω) W_oᵀ (W_vᵀ s) + ω Σ_n g_n H_n        ∂L/∂b = Σ_n g_n
    ∂L/∂u_n = g_n j_n,  q_n = W_qᵀ H_n
    ∂L/∂W_k = Σ_n ∂L/∂u_n ⊗ q_n / √d      ∂L/∂W_q = Σ_n H_n ⊗ (W_kᵀ ∂L/∂u_n) / √d

So an update holds c, j and H of the batch, never h. The tests compare all of it with autograd
through the naive form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from r2m_service.modeling.head import Head, below

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def gradients(
    head: Head,
    *,
    omega: float,
    g_N: Tensor,
    rte_NR: Tensor,
    c_NP: Tensor | None,
    j_NP: Tensor | None,
) -> dict[str, Tensor]:
    """∂L/∂(every trained tensor), by name.

    Args:
        head: the weights that c and j were pooled with.
        omega: ω of the rewards in the loss; z of j_NP is (1 − ω) v.
        g_N: ∂L/∂r.
        rte_NR: reward token embeddings H_last.
        c_NP, j_NP: pooled states; None for a head without attention.
    """
    found: dict[str, Tensor] = {}
    w_gradient_R = omega * (g_N @ rte_NR)
    if head.attends:
        assert c_NP is not None
        assert j_NP is not None
        share = 1.0 - omega
        w_v_PI, w_o_IR = head.tensors["w_v"], head.tensors["w_o"]
        w_q_RI, w_k_PI = head.tensors["w_q"], head.tensors["w_k"]
        root = math.sqrt(w_q_RI.shape[1])
        s_P = g_N @ c_NP
        t_I = w_v_PI.T @ s_P
        found["w_v"] = share * torch.outer(s_P, w_o_IR @ head.w_R)
        found["w_o"] = share * torch.outer(t_I, head.w_R)
        w_gradient_R = w_gradient_R + share * (w_o_IR.T @ t_I)
        du_NP = g_N[:, None] * j_NP
        found["w_k"] = du_NP.T @ (rte_NR @ w_q_RI) / root
        found["w_q"] = rte_NR.T @ (du_NP @ w_k_PI) / root
    found["head.weight"] = w_gradient_R[None, :]
    if "head.bias" in head.tensors:
        found["head.bias"] = g_N.sum()[None]
    return found


@dataclass(frozen=True)
class Moments:
    """AdamW's state: the first and second moments, by tensor name, and its step count t."""

    t: int
    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]

    @staticmethod
    def zeros(head: Head) -> Moments:
        """The state before any update."""
        blank = {name: torch.zeros_like(tensor) for name, tensor in head.tensors.items()}
        return Moments(0, blank, {name: tensor.clone() for name, tensor in blank.items()})

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        return save(self.to_tensors())

    @staticmethod
    def from_bytes(data: bytes, device: torch.device) -> Moments:
        """The state of a file made by `to_bytes`."""
        return Moments.from_tensors(load(data), device)

    def to_tensors(self) -> dict[str, Tensor]:
        """What the file holds."""
        tensors = {f"first.{name}": t.cpu() for name, t in self.first.items()}
        tensors |= {f"second.{name}": t.cpu() for name, t in self.second.items()}
        tensors["t"] = torch.tensor([self.t], dtype=torch.int64)
        return tensors

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> Moments:
        """The state in what `to_tensors` gave, copied; what else is there is left alone."""
        first, second = (below(tensors, start, device) for start in ("first.", "second."))
        return Moments(int(tensors["t"]), first, second)


@dataclass(frozen=True)
class Step:
    """What an optimizer step gave.

    Attributes:
        tensors: the new weights.
        gradient_norm: before clipping, over all tensors.
        finite: whether the gradient and every new weight are.
    """

    tensors: dict[str, Tensor]
    moments: Moments
    gradient_norm: float
    finite: bool


class AdamWStep:
    """One step of torch's AdamW, tensor by tensor: the given head and moments stay as they are.

    Tensor by tensor, because a paper-size head takes more than a second on a CPU and whoever owns
    the device may want to do something else in between.

    Args:
        gradient: of every tensor of the head, by name.
        max_grad_norm: the global norm to clip to; None: no clipping.
    """

    def __init__(
        self,
        head: Head,
        gradient: Mapping[str, Tensor],
        moments: Moments,
        *,
        learning_rate: float,
        weight_decay: float,
        max_grad_norm: float | None,
    ) -> None:
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._moments = moments
        self._weights = {name: tensor.detach().clone() for name, tensor in head.tensors.items()}
        for name, tensor in self._weights.items():
            tensor.grad = gradient[name].clone()
        self._norm = torch.nn.utils.clip_grad_norm_(
            self._weights.values(), math.inf if max_grad_norm is None else max_grad_norm
        )
        self._first: dict[str, Tensor] = {}
        self._second: dict[str, Tensor] = {}

    @property
    def names(self) -> list[str]:
        """The tensors to update."""
        return list(self._weights)

    def update(self, name: str) -> None:
        """Move one tensor."""
        tensor = self._weights[name]
        optimizer = torch.optim.AdamW(
            [tensor],
            lr=self._learning_rate,
            weight_decay=self._weight_decay,
            betas=BETAS,
            eps=EPSILON,
        )
        optimizer.state[tensor] = {
            "step": torch.tensor(float(self._moments.t)),
            "exp_avg": self._moments.first[name].clone(),
            "exp_avg_sq": self._moments.second[name].clone(),
        }
        optimizer.step()
        state = optimizer.state[tensor]
        self._first[name], self._second[name] = state["exp_avg"], state["exp_avg_sq"]
        tensor.grad = None

    def finish(self) -> Step:
        """The outcome, once every tensor has moved."""
        return Step(
            tensors=self._weights,
            moments=Moments(self._moments.t + 1, self._first, self._second),
            gradient_norm=float(self._norm),
            finite=bool(torch.isfinite(self._norm))
            and all(bool(torch.isfinite(tensor).all()) for tensor in self._weights.values()),
        )
