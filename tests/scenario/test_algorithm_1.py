"""The paper's Algorithm 1, replayed by hand, against the running service.

Naive attention, plain autograd, plain AdamW: nothing of the service's modeling code is used but
version 0's weights, which are read over the wire, and the frozen backbone's embeddings, which
transformers computes here.
"""

import math

import pytest
import torch
from safetensors.torch import load
from support import oracle
from support.rollouts import WIDTH_P, groups, samples, states
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from r2m_client import Group, Sample

STEPS, ALPHA, RATE, FLOOR, TOTAL, DECAY = 3, 0.3, 3e-3, 0.6, 6, 0.01


@pytest.fixture(scope="module")
def by_transformers(reward_model):
    """RTE of one sample, unpadded, by transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(reward_model)

    @torch.no_grad()
    def rte(sample):
        turns = [
            {"role": "user", "content": sample.prompt},
            {"role": "assistant", "content": sample.response},
        ]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt")["input_ids"]
        return model.model(ids).last_hidden_state[0, -1]

    return rte


def omega(t):
    return max(0.5 * math.cos(math.pi * t / TOTAL) + 0.5, FLOOR)


def fresh(group, step):
    """The same texts with the hidden states of the updated policy."""
    return Group(
        group.id,
        [
            Sample(s.id, s.prompt, s.response, states(7000 + 100 * step + n))
            for n, s in enumerate(group.samples)
        ],
    )


def test_three_steps_of_algorithm_1(client, run_name, by_transformers):
    client.create_run(
        run_name,
        policy_hidden_size=WIDTH_P,
        method={
            "profile": "paper",
            "width": 16,
            "alpha": ALPHA,
            "learning_rate": RATE,
            "omega": {"kind": "cosine", "total_steps": TOTAL, "floor": FLOOR},
        },
    )
    weights = load(client.head_weights(run_name, 0))
    assert not weights["w_o"].any()
    leaves = {name: t.clone().requires_grad_() for name, t in weights.items()}
    optimizer = torch.optim.AdamW(leaves.values(), lr=RATE, weight_decay=DECAY)

    def naive(batch, at):
        rte = torch.stack([by_transformers(s) for s in batch])
        return oracle.rewards(leaves, rte, [torch.tensor(s.hidden_states) for s in batch], at)

    for t in range(1, STEPS + 1):
        # Score the rollouts with the sampling policy's states, then align with the updated one's.
        rollout = groups(t, size=5)
        scored = client.score([s for g in rollout for s in g.samples], run=run_name)
        assert scored.omega == pytest.approx(omega(t))
        with torch.no_grad():
            expected = naive([s for g in rollout for s in g.samples], omega(t))
        spread = float(expected.std())
        assert scored.rewards == pytest.approx(expected.tolist(), abs=1e-5 * max(spread, 1e-2))

        updated = [fresh(group, t) for group in rollout]
        parts = [oracle.grebt(naive(group.samples, omega(t)), ALPHA) for group in updated]
        total, bt, gre = (torch.stack(list(column)).mean() for column in zip(*parts, strict=True))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

        answer = client.align(run_name, step=t, groups=updated)
        assert answer.accepted
        assert answer.head == t
        assert answer.omega == pytest.approx(omega(t + 1))
        assert answer.loss.bt == pytest.approx(float(bt.detach()), abs=1e-5)
        assert answer.loss.gre == pytest.approx(float(gre.detach()), abs=1e-5)
        assert answer.loss.total == pytest.approx(float(total.detach()), abs=1e-5)
        assert answer.loss.kl is None
        found = load(client.head_weights(run_name, t))
        for name, leaf in leaves.items():
            moved = float((found[name] - weights[name]).abs().max())
            assert moved > 0, name
            difference = float((found[name] - leaf.detach()).abs().max())
            assert difference < 1e-5, (t, name, difference)

    held_out = samples(9, count=5)
    with torch.no_grad():
        expected = naive(held_out, omega(STEPS + 1))
    # By weights that three steps of Adam have left as far apart as rounding does, see above.
    assert client.score(held_out, run=run_name).rewards == pytest.approx(
        expected.tolist(), abs=3e-5 * max(float(expected.std()), 1e-2)
    )
