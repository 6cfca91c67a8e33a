"""The paper's formulas written naively: keys, values and softmax, nothing absorbed, autograd.

Deliberately shares no code with the service.
"""

import math

import torch


def rewards(tensors, rte_NR, states, omega):
    """eq. 3 and 4, sample by sample. `states`: a list of (S, P) tensors, None: no attention."""
    w = tensors["head.weight"][0]
    bias = tensors["head.bias"][0] if "head.bias" in tensors else 0.0
    out = []
    for place in range(len(rte_NR)):
        h_last = rte_NR[place]
        if states is None:
            fin = omega * h_last
        else:
            h = states[place]
            q = h_last @ tensors["w_q"]
            k = h @ tensors["w_k"]
            v = h @ tensors["w_v"]
            attention = torch.softmax(q @ k.T / math.sqrt(q.shape[-1]), dim=-1)
            h_hat = attention @ v @ tensors["w_o"]
            fin = (1 - omega) * h_hat + omega * h_last
        out.append(fin @ w + bias)
    return torch.stack(out)


def grebt(r, alpha):
    """eq. 5, 6, 7 of one group with its own best and worst as labels."""
    winner, loser = r.max(), r.min()
    bt = -torch.log(1 / (1 + torch.exp(-(winner - loser))))
    std = torch.sqrt(((r - r.mean()) ** 2).mean())
    p = torch.exp((r - r.mean()) / std)
    p = p / p.sum()
    gre = -(p * torch.log(p)).sum()
    return (1 - alpha) * bt + alpha * gre, bt, gre


def random_head(width_R, width_P, inner, *, seed, dtype=torch.float64, bias=True):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype) / math.sqrt(
            shape[0]
        )

    tensors = {
        "w_q": normal(width_R, inner),
        "w_k": normal(width_P, inner),
        "w_v": normal(width_P, inner),
        "w_o": normal(inner, width_R),
        "head.weight": normal(width_R)[None, :] * math.sqrt(width_R) * 0.3,
    }
    if bias:
        tensors["head.bias"] = normal(1)
    return tensors
