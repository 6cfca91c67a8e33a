"""Runs of the toy lab made by hand."""

import numpy as np

from lab.rlhf import GROUPS, K

STEPS = 160


def made(*, gold, reward, seed=0, steps=STEPS, **more):
    """A run whose mean gold and reward are curves of the share of the run that is over."""
    draw = np.random.default_rng(seed)
    at = np.linspace(0, 1, steps)
    noise = draw.standard_normal((2, steps, GROUPS * K))
    shared = 0.5 * noise[0] + 0.87 * noise[1]
    run = {
        "gold": np.array([gold(x) for x in at])[:, None] + noise[0],
        "reward": np.array([reward(x) for x in at])[:, None] + shared,
        "kl": 20 * at,
        "first_mean": np.full(steps, reward(0.0)),
        "first_spread": np.ones(steps),
        "length": np.full((steps, GROUPS * K), 12.0) + draw.standard_normal((steps, GROUPS * K)),
        "filler": np.zeros((steps, GROUPS * K)),
        "labels": np.full(steps, 2.0),
        "accepted": np.zeros(steps),
        "rejected": np.zeros(steps),
        "spread_ratio": np.full(steps, np.nan),
        "rank_correlation": np.full(steps, np.nan),
        "gre": np.full(steps, np.nan),
        "feedback_gain": np.full(steps, np.nan),
    }
    run["vanilla"] = run["reward"]
    return {key: np.asarray(value, np.float32) for key, value in {**run, **more}.items()}


def fooled(seed):
    """Reward rises throughout; the gold rises until 40 % of the run, then falls."""
    return made(
        gold=lambda x: 3 + (x if x < 0.4 else 1.6 - 3 * x), reward=lambda x: 4 * x, seed=seed
    )


def fine(seed):
    return made(gold=lambda x: 3 + 4 * x, reward=lambda x: 4 * x, seed=seed)
