"""However many runs, names and paths there are, the series are bounded."""

import httpx
import numpy as np
import pytest
from support.rollouts import WIDTH_P, samples
from support.scraping import scrape
from support.serving import running

from r2m_client import Client
from r2m_service.application.tally import WINDOW, MovingPair
from r2m_service.application.watching import IDLE_SECONDS, Places
from r2m_service.telemetry.catalogue import CATALOGUE

OUR_LABELS = {label for group in CATALOGUE.values() for one in group for label in one.labels}


def test_runs_beyond_the_bound_have_no_series_and_are_counted(reward_model, backbone, tmp_path):
    with (
        running(reward_model, tmp_path, backbone=backbone, metrics_runs=2) as server,
        Client(server.urls["http"], wire_dtype="float32", retries=0) as client,
    ):
        for name in "abcde":
            client.create_run(name, policy_hidden_size=WIDTH_P, method={"width": 16})
        client.score(samples(1), run="b")
        client.score(samples(1), run="d")
        found = scrape(server)
        assert found.values("run") == {"b", "d"}
        assert found.get("r2m_runs_left_out") == 3
        assert found.get("r2m_runs", state="open") == 5
        size = len(found.samples)
        for name in "ace":
            client.score(samples(1), run=name)
        again = scrape(server)
        assert again.values("run") == {"b", "d"}  # in use: nobody takes their places
        assert len(again.samples) == size
        assert again.get("r2m_samples_total", result="ok") == 20  # nobody's samples are lost
        client.archive_run("b")
        after = scrape(server)
        assert after.values("run") == {"d", "e"}
        assert after.get("r2m_runs", state="archived") == 1
        assert after.get("r2m_run_samples_total", run="e", result="ok") == 4


def test_what_clients_make_up_is_no_label(server):
    url = server.urls["http"]

    def knock(start):
        for n in range(start, start + 20):
            httpx.get(f"{url}/nowhere-{n}")
            httpx.post(f"{url}/v1/runs/run-{n}/score", json={"samples": []})
            httpx.request(f"VERB{n}", f"{url}/v1/server")
            httpx.get(f"{url}/v1/runs/run-{n}/heads/{n}")
            httpx.get(f"{url}/v1/runs/run-{n}", headers={"x-request-timeout": f"{n}"})

    knock(0)
    first = scrape(server)
    knock(20)
    second = scrape(server)
    assert second.samples.keys() == first.samples.keys()
    labels = {"transport": "http", "method": "unknown", "code": "not_found"}
    assert second.since(first, "r2m_requests_total", **labels) == 20
    known = {name for _, labels in second.samples for name, _ in labels}
    assert known <= OUR_LABELS | {"le"}


def test_a_run_keeps_its_place_while_it_is_used():
    now = 10_000.0
    places = Places(2, clock=lambda: now)
    assert places.choose(["a", "b", "c"], {}) == ["c", "b"]  # nobody was used: the newest
    assert places.choose(["a", "b", "c"], {"a": now}) == ["c", "a"]  # b was made first
    used = {"a": now, "b": now + 1, "c": now + 2}
    assert set(places.choose(["a", "b", "c"], used)) == {"a", "c"}
    now += IDLE_SECONDS
    used |= {"c": now, "b": now}
    assert set(places.choose(["a", "b", "c"], used)) == {"a", "c"}
    now += 1
    assert set(places.choose(["a", "b", "c"], used)) == {"b", "c"}  # a was idle for long enough
    assert places.choose(["b"], used) == ["b"]  # archived: gone at once
    assert Places(0).choose(["a"], {"a": now}) == []


def test_an_idle_run_keeps_its_place_where_nobody_else_is_used():
    now = 10_000.0
    places = Places(1, clock=lambda: now)
    assert places.choose(["a"], {"a": now}) == ["a"]
    now += 2 * IDLE_SECONDS
    assert places.choose(["a", "b"], {"a": now - 2 * IDLE_SECONDS}) == ["a"]
    assert places.choose(["a", "b"], {"a": now - 2 * IDLE_SECONDS, "b": now}) == ["b"]


@pytest.mark.parametrize("count", [1, 7, WINDOW, 3 * WINDOW])
def test_moving_numbers_are_those_of_their_weights(count):
    draw = np.random.default_rng(count)
    x = draw.normal(3.0, 2.0, count)
    y = 0.5 * x + draw.normal(0.0, 1.0, count)
    pair = MovingPair()
    for one, other in zip(x, y, strict=True):
        pair.add(float(one), float(other))
    # By definition: the first WINDOW weigh the same, each later one takes 1/WINDOW of all.
    weights = np.ones(min(count, WINDOW)) / min(count, WINDOW)
    for _ in range(count - len(weights)):
        weights = np.append(weights * (1 - 1 / WINDOW), 1 / WINDOW)
    mean_x, mean_y = weights @ x, weights @ y
    var_x, var_y = weights @ (x - mean_x) ** 2, weights @ (y - mean_y) ** 2
    assert (pair.mean_x, pair.mean_y) == pytest.approx((mean_x, mean_y), rel=1e-9)
    assert (pair.deviation_x, pair.deviation_y) == pytest.approx(
        (var_x**0.5, var_y**0.5), rel=1e-9, abs=1e-12
    )
    if count == 1:
        assert pair.correlation is None
    else:
        rho = weights @ ((x - mean_x) * (y - mean_y)) / (var_x * var_y) ** 0.5
        assert pair.correlation == pytest.approx(rho, abs=1e-9)
