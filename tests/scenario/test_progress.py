"""AlignStream tells of groups that are left out as soon as it knows, before the answer."""

import dataclasses

import numpy as np
from support.rollouts import WIDTH_P, groups, states

from r2m_client import Client, Group


def test_a_bad_group_is_told_before_the_others_are_done(server, run_name):
    batch = groups(1, count=6)
    broken = batch[0]
    nan = np.full((4, WIDTH_P), np.nan, np.float32)
    first = [dataclasses.replace(broken.samples[0], hidden_states=nan), *broken.samples[1:]]
    wide = [
        dataclasses.replace(one, id=f"w{n}", hidden_states=states(n, width=WIDTH_P + 1))
        for n, one in enumerate(batch[1].samples)
    ]
    alone = Group("alone", [dataclasses.replace(batch[2].samples[0], id="alone-0")])
    sent = [Group("nan", first), *batch[1:], alone, Group("wide", wide)]
    told = []
    with Client(server.urls["grpc"], wire_dtype="float32", retries=0) as client:
        client.create_run(run_name, policy_hidden_size=WIDTH_P, method={"width": 16})
        answer = client.align(run_name, step=1, groups=sent, progress=told.append)
    skipped = [one for now in told for one in now.skipped]
    assert [(one.id, one.because) for one in skipped] == [
        ("wide", "error"),  # seen before the device was asked
        ("nan", "error"),
        ("alone", "too_few"),
    ]
    assert [one.error.code for one in skipped[0].errors] == ["feedback_width"] * len(wide)
    assert [(one.id, one.error.code) for one in skipped[1].errors] == [
        (first[0].id, "feedback_not_finite")
    ]
    assert told[-1].groups_total == len(sent) - 1
    assert answer.groups.skipped == 3
    assert {one.id for one in answer.errors} == {first[0].id, *(one.id for one in wide)}
