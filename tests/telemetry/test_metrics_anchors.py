"""The anchors' last look, as /metrics shows it."""

import dataclasses

import pytest
from support.rollouts import PROMPTS, RESPONSES, WIDTH_P, groups, states
from support.scraping import scrape

from r2m.statistics import wilson
from r2m_client import AnchorStates, Pair, Sample
from r2m_service.telemetry.catalogue import (
    RUN_ACCURACY,
    RUN_ACCURACY_HIGH,
    RUN_ACCURACY_LOW,
    RUN_PAIRS,
)
from r2m_service.telemetry.families import Families
from r2m_service.telemetry.runs import _show_look

GATE = {"anchors_every": 2, "anchors_margin": 0.3, "anchors_looks": 1, "anchors_alpha": 0.4}
PAIRS = 40


def gold_pairs(client):
    texts = [
        Sample(f"t{n}-{side}", f"{PROMPTS[n % 3]} ({n})", f"{RESPONSES[(n * 7) % 5]} {side}")
        for n in range(PAIRS)
        for side in ("yes", "no")
    ]
    rewards = [one.vanilla_reward for one in client.score(texts).scores]
    found = []
    for n in range(PAIRS):
        a, b = texts[2 * n], texts[2 * n + 1]
        chosen, rejected = (a, b) if rewards[2 * n] > rewards[2 * n + 1] else (b, a)
        sides = (
            dataclasses.replace(chosen, id=f"p{n}-c"),
            dataclasses.replace(rejected, id=f"p{n}-r"),
        )
        # Every fifth is wrong, so that the accuracy is not 1.
        found.append(Pair(f"p{n}", *(sides[::-1] if n % 5 == 0 else sides)))
    return found


def test_the_last_look_stays_until_the_next(client, server, run_name):
    client.create_run(
        run_name,
        policy_hidden_size=WIDTH_P,
        method={"width": 16, "learning_rate": 1e-4, "gate": GATE},
    )
    pairs = gold_pairs(client)
    client.put_anchors(run_name, pairs)
    client.align(run_name, step=1, groups=groups(1))
    name = "r2m_run_anchor_accuracy_ratio"
    assert scrape(server).get(name, run=run_name, head="live") is None
    shown = [AnchorStates(one.id, states(2 * n), states(2 * n + 1)) for n, one in enumerate(pairs)]
    judged = client.align(run_name, step=2, groups=groups(2), anchors=shown)
    assert judged.anchors is not None
    assert scrape(server).get(name, run=run_name, head="live") is not None
    client.align(run_name, step=3, groups=groups(3))  # no look: the last one stays
    found = scrape(server)
    look = judged.anchors
    live = look.accuracy if judged.accepted else look.live.accuracy
    expected = {"candidate": look.accuracy, "reference": look.reference.accuracy, "live": live}
    assert expected["reference"] == pytest.approx(0.8)
    for head, accuracy in expected.items():
        assert found.get(name, run=run_name, head=head) == accuracy
        low, high = wilson(accuracy * PAIRS, PAIRS)
        assert found.get("r2m_run_anchor_accuracy_low_ratio", run=run_name, head=head) == low
        assert found.get("r2m_run_anchor_accuracy_high_ratio", run=run_name, head=head) == high
    assert tuple(look.wilson) == pytest.approx(wilson(look.accuracy * PAIRS, PAIRS))
    assert found.get("r2m_run_anchor_pairs", run=run_name) == PAIRS
    assert found.get("r2m_run_anchor_looks", run=run_name) == 1
    # Another set has not been looked at yet.
    client.put_anchors(run_name, pairs[:-1])
    assert scrape(server).get(name, run=run_name, head="live") is None


@pytest.mark.parametrize(("accepted", "live"), [(True, 0.75), (False, 0.5)])
def test_live_is_what_the_step_left(accepted, live):
    out = Families([RUN_PAIRS, RUN_ACCURACY, RUN_ACCURACY_LOW, RUN_ACCURACY_HIGH])
    look = {
        "pairs": 8,
        "accuracy": 0.75,
        "reference": {"accuracy": 0.625},
        "live": {"accuracy": 0.5},
    }
    _show_look(out, "a", look, accepted=accepted)
    (found,) = [one for one in out.found() if one.name == RUN_ACCURACY.name]
    assert {one.labels["head"]: one.value for one in found.samples} == {
        "candidate": 0.75,
        "reference": 0.625,
        "live": live,
    }
