"""Samples of metrics that are made anew at every scrape."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family

from r2m_service.telemetry.catalogue import Metric


class Families:
    """Collects samples by metric, in the catalogue's order. What is absent has no sample.

    Args:
        metrics: those that may be set.
    """

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for one in metrics:
            family = CounterMetricFamily if one.kind == "counter" else GaugeMetricFamily
            self._families[one.name] = family(one.name, one.help, labels=one.labels)

    def set(self, metric: Metric, value: float | None, *labels: str) -> None:
        """A sample; None: there is no such number."""
        if value is not None:
            self._families[metric.name].add_metric(labels, float(value))

    def found(self) -> list[Family]:
        """Those that have samples."""
        return [family for family in self._families.values() if family.samples]
