"""Tiny random policies of several architectures, and texts of several lengths for them."""

import torch
from support import models
from transformers import AutoModelForCausalLM

WIDTH = 48
LENGTHS = (5, 9, 1, 12)


def policy(kind, *, seed=0, **changes):
    torch.manual_seed(seed)
    config = models.config(kind, hidden_size=WIDTH, num_attention_heads=4, **changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model


def texts(*, seed=1, lengths=LENGTHS):
    """Token ids, none of them special."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 320, (length,), generator=draw) for length in lengths]


def padded(ids, side):
    """[B, T] and its mask, padded on one side or ("both") on both."""
    longest = max(len(one) for one in ids) + (2 if side == "both" else 0)
    tokens = torch.zeros(len(ids), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, one in enumerate(ids):
        start = {"left": longest - len(one), "right": 0, "both": min(1 + row, longest - len(one))}
        tokens[row, start[side] : start[side] + len(one)] = one
        mask[row, start[side] : start[side] + len(one)] = 1
    return tokens, mask


@torch.no_grad()
def alone(model, ids):
    """The oracle: each text by itself, the last of transformers' own hidden states."""
    out = model(ids[None], output_hidden_states=True, use_cache=False)
    return out.hidden_states[-1][0]
