"""A language whose true quality can be counted, so that over-optimisation can be seen.

A query names a topic: a shift between 1 and 4. A good response is a chain of numbers in which each
is the one before plus the shift, modulo 11. Fillers may stand anywhere and mean nothing.

gold = valid transitions − 0.15 × invalid ones: 15 at most, since a response has 16 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

PAD, BOS, EOS = 0, 1, 2
TOPICS = 4
FIRST_TOPIC = 3
NUMBERS = 11
FIRST_NUMBER = FIRST_TOPIC + TOPICS
FILLERS = 4
FIRST_FILLER = FIRST_NUMBER + NUMBERS
VOCABULARY = FIRST_FILLER + FILLERS
PROMPT = 2
"""Tokens of a query: BOS, topic."""
RESPONSE = 16
"""Tokens of a response at most, EOS among them."""
INVALID = 0.15


def gold(tokens_NS: Tensor) -> Tensor:
    """True quality of each query with its response, float32.

    Args:
        tokens_NS: BOS, topic, response; whatever follows EOS is not looked at.
    """
    shift_N = tokens_NS[:, 1] - FIRST_TOPIC + 1
    number_N = torch.full_like(shift_N, -1)
    alive_N = torch.ones_like(shift_N, dtype=torch.bool)
    total_N = torch.zeros(len(tokens_NS))
    for token_N in tokens_NS[:, PROMPT:].unbind(1):
        alive_N = alive_N & (token_N != EOS)
        is_number_N = alive_N & (token_N >= FIRST_NUMBER) & (token_N < FIRST_FILLER)
        value_N = token_N - FIRST_NUMBER
        moved_N = is_number_N & (number_N >= 0)
        valid_N = moved_N & (value_N == (number_N + shift_N) % NUMBERS)
        total_N += valid_N.float() - INVALID * (moved_N & ~valid_N).float()
        number_N = torch.where(is_number_N, value_N, number_N)
    return total_N


def lengths(tokens_NS: Tensor) -> Tensor:
    """Tokens of query and response up to EOS, which counts."""
    ended_NS = tokens_NS == EOS
    first_N = ended_NS.int().argmax(1) + 1
    return torch.where(ended_NS.any(1), first_N, tokens_NS.shape[1])


def filler_share(tokens_NS: Tensor) -> Tensor:
    """Share of fillers among a response's tokens: what the proxy mistakes for quality."""
    filler_N = (tokens_NS[:, PROMPT:] >= FIRST_FILLER).sum(1)
    return filler_N / (lengths(tokens_NS) - PROMPT).clamp_min(1)


def queries(count: int, draw: torch.Generator) -> Tensor:
    """BOS and a topic each: (count, 2)."""
    topic_N = torch.randint(TOPICS, (count,), generator=draw) + FIRST_TOPIC
    return torch.stack([torch.full((count,), BOS), topic_N], 1)


def human_responses(count: int, draw: torch.Generator) -> Tensor:
    """What people write: (count, 2 + 16), padded behind EOS.

    Who cares gets more transitions right, and likes fillers: the two go together in what people
    wrote, and nowhere else. That is what a reward model can get wrong.
    """
    tokens_NS = torch.full((count, PROMPT + RESPONSE), PAD)
    tokens_NS[:, :PROMPT] = queries(count, draw)
    shift_N = tokens_NS[:, 1] - FIRST_TOPIC + 1
    care_N = torch.rand(count, generator=draw)
    length_N = torch.randint(10, RESPONSE, (count,), generator=draw)
    number_N = torch.randint(NUMBERS, (count,), generator=draw)
    for place in range(RESPONSE):
        filler_N = torch.rand(count, generator=draw) < 0.6 * care_N
        valid_N = torch.rand(count, generator=draw) < care_N
        other_N = torch.randint(NUMBERS, (count,), generator=draw)
        next_N = torch.where(valid_N, (number_N + shift_N) % NUMBERS, other_N)
        number_N = torch.where(filler_N, number_N, next_N)
        word_N = torch.randint(FILLERS, (count,), generator=draw) + FIRST_FILLER
        token_N = torch.where(filler_N, word_N, number_N + FIRST_NUMBER)
        token_N = torch.where(length_N == place, EOS, token_N)
        tokens_NS[:, PROMPT + place] = torch.where(length_N < place, PAD, token_N)
    return tokens_NS
