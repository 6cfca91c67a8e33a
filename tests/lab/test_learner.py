"""The lab's learner is the service: the same groups give the same heads."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load
from support.rollouts import WIDTH_P, groups
from support.serving import running

from lab.learner import Group as LabGroup
from lab.learner import Learner, method_of
from r2m_client import Client, Group, Label
from r2m_service.modeling.loading import load_backbone

METHODS = {
    "paper": {
        "profile": "paper",
        "learning_rate": 3e-3,
        "omega": {"kind": "cosine", "total_steps": 6, "floor": 0.6},
    },
    "guarded": {"profile": "guarded", "learning_rate": 3e-3},
    "rejecting": {
        "profile": "guarded",
        "learning_rate": 0.3,
        "gate": {"spread_max": 1.01, "anchors_every": None, "freeze_after": 2},
    },
    "labelled": {"profile": "labelled", "learning_rate": 3e-3},
}
STEPS = 4


@pytest.fixture(scope="module")
def backbone(reward_model):
    return load_backbone(str(reward_model))


@pytest.fixture(scope="module")
def server(reward_model, backbone, tmp_path_factory):
    with running(reward_model, tmp_path_factory.mktemp("state"), backbone=backbone) as one:
        yield one


@pytest.mark.parametrize("name", METHODS)
def test_the_same_groups_give_the_same_heads(server, backbone, name):
    # A server learns again from what came to /labels; the lab's learner from every labelled group
    # (the next test).
    given = {"replay_groups": 0, **METHODS[name], "width": 16, "seed": 5}
    with Client(server.urls["grpc"], wire_dtype="float32") as client:
        client.create_run(name, policy_hidden_size=WIDTH_P, method=given)
        first = load(client.head_weights(name, 0))
        learner = Learner(
            method_of(given, state_width=WIDTH_P, attends=True),
            weight_R=first["head.weight"][0],
            bias=first.get("head.bias"),
            width_P=WIDTH_P,
        )
        for tensor, weight in learner.head.tensors.items():
            assert torch.equal(weight, first[tensor])
        for step in range(1, STEPS + 1):
            batch = groups(step, size=5)
            if name != "paper":  # which takes no label
                batch[0] = Group(batch[0].id, batch[0].samples, preferred=("g0-3", "g0-1"))
            ours = learner.align([lab_group(backbone, one) for one in batch])
            theirs = client.align(name, step=step, groups=batch)
            assert ours.verdict == theirs.verdict
            assert learner.omega == pytest.approx(theirs.omega)
            weights = load(client.head_weights(name, theirs.head))
            for tensor, weight in learner.head.tensors.items():
                torch.testing.assert_close(weight, weights[tensor], atol=2e-6, rtol=2e-5)


def test_the_replay_is_that_of_labels_sent_to_a_server(server, backbone):
    """What came to /labels is learnt from at the step's own align and again at later ones.

    The lab's learner takes the step's own from its groups, and so replays one fewer.
    """
    given = {"profile": "labelled", "learning_rate": 3e-3, "width": 16, "seed": 5}
    asked = {**given, "replay_groups": 3, "audit_rate": 1.0, "judge_share": 0.0}
    with Client(server.urls["grpc"], wire_dtype="float32") as client:
        client.create_run("late", policy_hidden_size=WIDTH_P, method=asked)
        first = load(client.head_weights("late", 0))
        learner = Learner(
            method_of({**given, "replay_groups": 2}, state_width=WIDTH_P, attends=True),
            weight_R=first["head.weight"][0],
            bias=first.get("head.bias"),
            width_P=WIDTH_P,
        )
        for step in range(1, STEPS + 1):
            sent = groups(step, size=4)
            named = [
                replace(one, id=f"{step}-{one.id}", group=f"{step}-{group.id}")
                for group in sent
                for one in group.samples
            ]
            client.score(named, run="late")
            # One group a step: the second is its best, the last its worst.
            client.add_labels(
                "late", [Label(id=named[1].id, grade=1.0), Label(id=named[3].id, grade=0.0)]
            )
            theirs = client.align("late", step=step, groups=sent)
            assert theirs.groups.replayed == min(step, 3)
            told = replace(sent[0], preferred=("g0-1", "g0-3"))
            ours = learner.align([lab_group(backbone, told)])
            assert ours.verdict == theirs.verdict == "accepted"
            weights = load(client.head_weights("late", theirs.head))
            for tensor, weight in learner.head.tensors.items():
                torch.testing.assert_close(weight, weights[tensor], atol=2e-6, rtol=2e-5)


def lab_group(backbone, group):
    texts = [backbone.text.pair(one.prompt, one.response) for one in group.samples]
    rte = torch.stack([backbone.encode([one.ids], states=[False])[0].rte_R for one in texts])
    places = [sample.id for sample in group.samples]
    preferred = group.preferred and tuple(places.index(one) for one in group.preferred)
    return LabGroup(rte, [torch.tensor(s.hidden_states) for s in group.samples], preferred)
