"""Invariant 10: nothing that a client does changes the backbone: its weights stay as they were."""

import pytest
import torch
from support.rollouts import WIDTH_P, groups, samples, states

from r2m_client import AnchorStates, Client, Group, Label, Pair, Sample

WILD = {"width": 16, "learning_rate": 0.5, "kl_weight": 0.0, "audit_rate": 1.0, "judge_share": 0.0}


@pytest.fixture
def frozen(backbone):
    """Fails the test where a bit of the backbone has changed, or a gradient has reached it."""
    before = {name: value.clone() for name, value in backbone._reader.module.state_dict().items()}
    yield
    after = backbone._reader.module.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert all(one.grad is None for one in backbone._reader.module.parameters())
    assert backbone.compute_fingerprint() == backbone.fingerprint


@pytest.mark.parametrize("feedback", ["policy", "backbone", "none"])
@pytest.mark.parametrize("profile", ["guarded", "paper", "labelled"])
def test_updates_of_every_kind_leave_it_bit_identical(server, frozen, feedback, profile):
    hidden = feedback == "policy"
    method = {"profile": profile, **WILD, "gate": {"anchors_every": 1, "freeze_after": None}}
    if profile == "paper" and feedback != "none":
        method["omega"] = {"kind": "cosine", "total_steps": 9, "floor": 0.6}
    run = f"frozen-{feedback}-{profile}"
    with Client(server.urls["grpc"], wire_dtype="float32", retries=0) as client:
        width = {"policy_hidden_size": WIDTH_P} if hidden else {}
        client.create_run(run, feedback=feedback, method=method, **width)
        weights = client.head_weights(run, 0)
        client.put_anchors(run, [Pair("p", Sample("a", "Hi", "there"), Sample("b", "Hi", "you"))])
        anchors = [AnchorStates("p", states(1), states(2))] if hidden else ()
        for step in range(1, 7):
            batch = groups(step, hidden=hidden)
            sent = [one for group in batch for one in group.samples]
            for one in client.score(samples(step, hidden=hidden), run=run).scores[:2]:
                client.add_labels(run, [Label(id=one.id, grade=float(step))])
            client.score(sent, run=run)
            if profile != "paper":
                first = batch[0]
                batch[0] = Group(first.id, first.samples, preferred=("g0-0", "g0-1"))
            client.align(run, step=step, groups=batch, anchors=anchors)
        made = [one.head for one in client.heads(run)]
        assert len(made) > 3
        assert client.head_weights(run, made[-1]) != weights
