"""The lab's controls: they leave their run as it is, and say what a server's would."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support.rollouts import WIDTH_P, groups
from support.serving import running
from test_learner import lab_group

from lab import jobs, shadows, training
from lab.arms import LABELLED
from lab.learner import Learner, method_of
from lab.rlhf import K, Rlhf
from lab.shadows import KINDS, Shadowed, ShadowedRlhf
from r2m_client import Client, Group
from r2m_service.modeling.loading import load_backbone

ALL = LABELLED.but("all", "", labelled=1.0)
METHOD = {"profile": "labelled", "width": 16, "learning_rate": 3e-3, "seed": 5, "replay_groups": 0}


def test_a_run_is_the_same_with_and_without(start):
    plain, shadowed = Rlhf(ALL, start, 1), ShadowedRlhf(ALL, start, 1)
    ours, theirs = shadowed.run(3), plain.run(3)
    assert all(np.array_equal(ours[key], theirs[key], equal_nan=True) for key in theirs)
    pairs = {one.pairs for one in shadowed.shadowed.said.values()}
    assert len(pairs) == 1
    assert pairs.pop() > 15  # a group of equal golds has no label


def test_they_say_what_a_server_says(reward_model, tmp_path):
    """The same groups to both, all labelled: accuracies, and losses to float32."""
    backbone = load_backbone(str(reward_model))
    own = {}
    with (
        running(reward_model, tmp_path / "state", backbone=backbone) as server,
        Client(server.urls["grpc"], wire_dtype="float32") as client,
    ):
        client.create_run("r", policy_hidden_size=WIDTH_P, method={**METHOD, "controls": [*KINDS]})
        first = load(client.head_weights("r", 0))

        def learner(kind):
            width = backbone.width_R if kind == "backbone" else WIDTH_P
            return Learner(
                method_of(METHOD, state_width=width, attends=True),
                weight_R=first["head.weight"][0],
                bias=first.get("head.bias"),
                width_P=width,
                attends=True,
            )

        def bare():
            method = method_of(METHOD, state_width=WIDTH_P, attends=False)
            return Learner(
                method,
                weight_R=first["head.weight"][0],
                bias=first.get("head.bias"),
                width_P=WIDTH_P,
                attends=False,
            )

        ours = Shadowed(
            learner("policy"),
            {kind: bare() if kind == "none" else learner(kind) for kind in KINDS},
            lambda: own["states"],
        )
        for step in range(1, 5):
            batch = [
                Group(one.id, one.samples, preferred=(f"{one.id}-{step}", f"{one.id}-0"))
                for one in groups(step, size=K)
            ]
            texts = [backbone.text.pair(s.prompt, s.response) for g in batch for s in g.samples]
            own["states"] = [
                backbone.encode([one.ids], states=[True])[0].states_SR.float() for one in texts
            ]
            ours.align([lab_group(backbone, one) for one in batch])
            answer = client.align("r", step=step, groups=batch)
        for arm in answer.controls.arms:
            said, total = ours.said[arm.control], arm.total
            assert (said.pairs, said.verdict) == (total.pairs, arm.verdict)
            assert said.head / said.pairs == total.head_accuracy
            assert said.control / said.pairs == total.accuracy
            assert said.control_bt / said.pairs == pytest.approx(total.bt, rel=1e-5)
            assert said.head_bt / said.pairs == pytest.approx(total.head_bt, rel=1e-5)
            assert math.isclose(said.difference, total.difference)


def test_a_run_is_kept_and_read_again(start, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "start_of", lambda *_: start)
    found = shadows.said_by(ALL, 2, 3, tmp_path)
    assert [one.control for one in found] == list(KINDS)
    assert {one.verdict for one in found} == {"too_few_pairs"}
    (file,) = (tmp_path / "shadows").iterdir()
    monkeypatch.setattr(shadows, "ShadowedRlhf", None)  # not made anew
    assert shadows.said_by(ALL, 2, 3, tmp_path) == found
    assert len(json.loads(file.read_text())) == 3
    assert jobs.starts(tmp_path).parent == tmp_path / "starts"
    assert torch.get_num_threads() == 1
