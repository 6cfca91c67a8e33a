"""What is in hand, what is refused and who hangs up, on real sockets; and `r2m serve` itself."""

import json
import socket
import time

import httpx
import pytest
from support.processes import Process
from support.scraping import Scraped, scrape
from support.serving import running

BODY = json.dumps({"samples": [{"id": "a", "prompt": "How?", "response": "Thus."}]}).encode()


@pytest.fixture
def narrow(reward_model, backbone, tmp_path):
    """A server that takes one request at a time."""
    with running(reward_model, tmp_path, backbone=backbone, inflight_requests=1) as server:
        yield server


def half_sent(server):
    """A call whose client pauses within its body."""
    host, port = server.urls["http"].removeprefix("http://").split(":")
    one = socket.create_connection((host, int(port)))
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n"
    one.sendall(head.encode() + BODY[:5])
    return one


def until(server, there):
    end = time.monotonic() + 60
    while not there(found := scrape(server)):
        assert time.monotonic() < end, found.text
        time.sleep(0.01)
    return found


def test_what_is_in_hand_and_what_is_refused_for_it(narrow):
    with half_sent(narrow):
        found = until(narrow, lambda now: now.get("r2m_inflight_requests") == 1)
        assert found.get("r2m_inflight_bytes") == len(BODY)
        assert found.get("r2m_inflight_limit_requests") == 1
        assert found.get("r2m_refused_total", reason="inflight_requests") == 0
        refused = httpx.post(f"{narrow.urls['http']}/v1/score", content=BODY)
        assert refused.status_code == 429
        found = scrape(narrow)
        assert found.get("r2m_refused_total", reason="inflight_requests") == 1
        assert found.get("r2m_refused_total", reason="inflight_bytes") == 0
        labels = {"transport": "http", "method": "score"}
        assert found.get("r2m_requests_total", code="overloaded", **labels) == 1
    # Its client hung up: a call, and neither an answer nor an error.
    found = until(narrow, lambda now: now.get("r2m_inflight_requests") == 0)
    found = until(narrow, lambda now: now.get("r2m_requests_total", code="cancelled", **labels))
    assert found.get("r2m_requests_total", code="cancelled", **labels) == 1
    assert found.get("r2m_requests_total", code="ok", **labels) is None
    assert found.get("r2m_inflight_bytes") == 0


def test_r2m_serve_has_metrics(reward_model, tmp_path):
    process = Process(str(reward_model), str(tmp_path / "state"), "--metrics-runs", "3")
    try:
        process.wait_ready()
        assert httpx.post(f"{process.http}/v1/score", content=BODY).status_code == 200
        found = Scraped(httpx.get(f"{process.http}/metrics").text)
    finally:
        process.end()
    assert found.get("r2m_samples_total", result="ok") == 2  # with that of the warm-up
    labels = {"transport": "http", "method": "score", "code": "ok"}
    assert found.get("r2m_requests_total", **labels) == 1
    assert found.get("r2m_batch_samples_count") == 2
    assert found.get("r2m_inflight_limit_requests") == 1024
    assert found.get("r2m_queue_limit_samples") == 16384
    assert found.get("r2m_ready") == 1
