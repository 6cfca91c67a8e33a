"""The metrics port on prometheus-client: counters and histograms of what happens."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from r2m_service.application.metrics_port import Batched, Called
from r2m_service.telemetry import catalogue as c
from r2m_service.telemetry.catalogue import Metric


class Hearing:
    """Implements `application.metrics_port.Metrics`. Used from any thread.

    Args:
        registry: where the metrics are.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(metric: Metric) -> Histogram:
            return Histogram(
                metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry
            )

        self._requests = Counter(
            c.REQUESTS.name, c.REQUESTS.help, c.REQUESTS.labels, registry=registry
        )
        self._seconds = histogram(c.REQUEST_SECONDS)
        self._stages = histogram(c.STAGE_SECONDS)
        self._batch_samples = histogram(c.BATCH_SAMPLES)
        self._batch_tokens = histogram(c.BATCH_TOKENS)
        self._batch_feedback = histogram(c.BATCH_FEEDBACK)
        self._batch_stages = histogram(c.BATCH_STAGE_SECONDS)

    def called(self, call: Called) -> None:
        """A call is over."""
        self._requests.labels(call.transport, call.method, call.code).inc()
        if call.seconds is None:
            return
        self._seconds.labels(call.transport, call.method).observe(call.seconds)
        for stage, seconds in call.stages.items():
            self._stages.labels(call.transport, call.method, stage).observe(seconds)

    def batched(self, batch: Batched) -> None:
        """A batch is done."""
        self._batch_samples.observe(batch.samples)
        self._batch_tokens.observe(batch.tokens)
        if batch.feedback_bytes:
            self._batch_feedback.observe(batch.feedback_bytes)
        self._batch_stages.labels("backbone").observe(batch.backbone)
        self._batch_stages.labels("head").observe(batch.head)
