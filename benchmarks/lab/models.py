"""A decoder small enough that a whole RLHF run takes seconds: the policy, and the reward model.

Pre-norm, learnt positions, GELU: two layers of width 64. Its last-layer states are those after the
final norm, as `policy.hidden_state: post_norm` has them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.world import EOS, PAD, PROMPT, RESPONSE, VOCABULARY

WIDTH = 64
LAYERS = 2
HEADS = 4


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x_NSW: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
        count, tokens, _ = x_NSW.shape
        qkv = self.qkv(self.attention_norm(x_NSW)).view(count, tokens, 3, HEADS, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x_NSW = x_NSW + self.out(seen.transpose(1, 2).reshape(count, tokens, WIDTH))
        return x_NSW + self.down(F.gelu(self.up(self.mlp_norm(x_NSW)))), key, value


class Decoder(nn.Module):
    """Token ids to last-layer states, and those to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(PROMPT + RESPONSE, WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.3)

    def states(self, tokens_NS: Tensor) -> Tensor:
        """h_NSW after the final norm. Padding behind a text is never seen from within it."""
        return self._run(tokens_NS, [None] * LAYERS, 0)[0]

    def logits(self, states_NSW: Tensor) -> Tensor:
        """Of the next token, by tied embeddings."""
        return states_NSW @ self.tokens.weight.T

    def log_probabilities(self, tokens_NS: Tensor, states_NSW: Tensor | None = None) -> Tensor:
        """log π of each response token given what is before it: zero behind EOS. (N, S − 2)."""
        states = self.states(tokens_NS) if states_NSW is None else states_NSW
        log_NSV = self.logits(states[:, PROMPT - 1 : -1]).log_softmax(-1)
        response_NS = tokens_NS[:, PROMPT:]
        log_NS = log_NSV.gather(-1, response_NS[..., None])[..., 0]
        return log_NS.masked_fill(response_NS == PAD, 0.0)

    @torch.no_grad()
    def sample(self, prompts_NS: Tensor, draw: torch.Generator) -> Tensor:
        """Prompts with sampled responses, padded behind EOS: (N, 18)."""
        tokens = [prompts_NS]
        states, past = self._run(prompts_NS, [None] * LAYERS, 0)
        ended_N = torch.zeros(len(prompts_NS), dtype=torch.bool)
        for place in range(RESPONSE):
            chances_NV = self.logits(states[:, -1]).softmax(-1)
            token_N = torch.multinomial(chances_NV, 1, generator=draw)[:, 0]
            token_N = token_N.masked_fill(ended_N, PAD)
            ended_N = ended_N | (token_N == EOS)
            tokens.append(token_N[:, None])
            if place < RESPONSE - 1:
                states, past = self._run(token_N[:, None], past, PROMPT + place)
        return torch.cat(tokens, 1)

    def _run(
        self, tokens_NS: Tensor, past: list[tuple[Tensor, Tensor] | None], start: int
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor] | None]]:
        x_NSW = self.tokens(tokens_NS)
        x_NSW = x_NSW + self.places.weight[start : start + tokens_NS.shape[1]]
        new: list[tuple[Tensor, Tensor] | None] = []
        for block, before in zip(self.blocks, past, strict=True):
            x_NSW, key, value = block(x_NSW, before)
            new.append((key, value))
        return self.norm(x_NSW), new


class RewardModel(nn.Module):
    """A decoder with a scoring head on the last token's state."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Decoder()
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, tokens_NS: Tensor, lengths_N: Tensor) -> Tensor:
        """r_N."""
        states_NSW = self.backbone.states(tokens_NS)
        return self.score(last(states_NSW, lengths_N))[:, 0]


def last(states_NSW: Tensor, lengths_N: Tensor) -> Tensor:
    """The last real token's state: the reward token embedding."""
    return states_NSW[torch.arange(len(states_NSW)), lengths_N - 1]
