"""What a server's /metrics says, as numbers."""

from __future__ import annotations

import shutil

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families


class Scraped:
    """One scrape: its text, and a value for each name and labels."""

    def __init__(self, text):
        self.text = text
        self.samples = {}
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                key = (one.name, frozenset(one.labels.items()))
                assert key not in self.samples, f"twice: {key}"
                self.samples[key] = one.value

    def get(self, name, default=None, **labels):
        return self.samples.get((name, frozenset(labels.items())), default)

    def since(self, before, name, **labels):
        """What a counter has grown by."""
        return self.get(name, 0, **labels) - before.get(name, 0, **labels)

    def values(self, label):
        """All values of a label."""
        return {dict(labels)[label] for _, labels in self.samples if label in dict(labels)}


def scrape(server):
    answer = httpx.get(f"{server.urls['http']}/metrics", timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Scraped(answer.text)


def program(name):
    """Where a program of Prometheus is; the test skips where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt install prometheus)")
    return found
