"""Groups of samples with random hidden states, the same for the same seed."""

from dataclasses import replace

import numpy as np

from r2m_client import Group, Sample

WIDTH_P = 24
PROMPTS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "How do I bake bread?",
]
RESPONSES = [
    "The capital of France is Paris.",
    "The sea is wide and blue.",
    "Mix flour, water, salt and yeast.",
    "I do not know.",
    "Bread is the sea of France, and the dog is lazy.",
]


def states(seed, *, tokens=None, width=WIDTH_P, dtype=np.float32):
    draw = np.random.default_rng(seed)
    count = tokens or int(draw.integers(3, 30))
    return draw.standard_normal((count, width)).astype(dtype)


def samples(seed, *, group="g", count=4, hidden=True):
    return [
        Sample(
            id=f"{group}-{n}",
            prompt=PROMPTS[seed % len(PROMPTS)],
            response=f"{RESPONSES[(seed + n) % len(RESPONSES)]} {n}",
            hidden_states=states(1000 * seed + n) if hidden else None,
        )
        for n in range(count)
    ]


def labelled(seed, **more):
    """Groups whose first two samples are labelled from outside, with prompts of this seed's own."""
    return [
        Group(
            id=one.id,
            samples=[replace(each, prompt=f"{each.prompt} ({seed})") for each in one.samples],
            preferred=(one.samples[0].id, one.samples[1].id),
        )
        for one in groups(seed, **more)
    ]


def groups(seed, *, count=3, size=4, hidden=True):
    return [
        Group(
            id=f"g{n}",
            samples=samples(seed * 10 + n, group=f"g{n}", count=size, hidden=hidden),
        )
        for n in range(count)
    ]
