"""The API's metrics for Prometheus: its requests, its process, and the installation as the database has it."""

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from jobs.job.overview import Installation

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# The methods that get a series of their own.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The metrics of one application, in a registry of their own. No label has an id or another unbounded value."""

    def __init__(self) -> None:
        # Not prometheus_client's global registry: a second application could not register the same names there.
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "quantry_http_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "quantry_http_request_duration_seconds",
            "Seconds from a request's arrival to the end of its response.",
            ("method", "route"),
            registry=self._registry,
        )
        self._in_flight = Gauge(
            "quantry_http_requests_in_flight", "Requests being answered, streams included.", registry=self._registry
        )
        self._nudge_failures = Counter(
            "quantry_nudge_failures",
            "Nudges that the broker did not take; sweeps make them good.",
            registry=self._registry,
        )

    def begin(self) -> None:
        """Count a request that arrived."""
        self._in_flight.inc()

    def observe(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count one finished request. An unknown method is counted as OTHER, so that clients can not create series."""
        label = method if method in _METHODS else "OTHER"
        self._in_flight.dec()
        self._requests.labels(label, route, str(status)).inc()
        self._seconds.labels(label, route).observe(seconds)

    def nudge_failed(self) -> None:
        """Count a nudge that was not sent."""
        self._nudge_failures.inc()

    def render(self, installation: Installation | None) -> bytes:
        """Return the text format. ``installation`` is None without a database; what only it knows is then left out."""
        # A new registry for each scrape: two scrapes at a time must not see each other's numbers.
        snapshot = CollectorRegistry()
        snapshot.register(_Snapshot(installation))
        return generate_latest(self._registry) + generate_latest(snapshot)


class _Snapshot(Collector):
    def __init__(self, installation: Installation | None) -> None:
        self._installation = installation

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = self._installation
        yield _gauge("quantry_database_up", "Whether the database answered this scrape.", float(now is not None))
        if now is None:
            return
        yield _by_status("quantry_jobs", "Jobs in the database; those queued are the queue's depth.", now.jobs)
        yield _by_status("quantry_publications", "Pushes to the Hub in the database.", now.publications)
        yield _by_status("quantry_webhook_deliveries", "Webhook messages in the database.", now.webhook_deliveries)
        queue = now.queue
        yield _gauge(
            "quantry_queue_oldest_job_age_seconds",
            "How long the job that has waited longest is queued; 0 when none is.",
            queue.oldest_queued_seconds or 0.0,
        )
        yield _gauge(
            "quantry_queue_oldest_claimable_job_age_seconds",
            "The same for jobs that could be taken now, without those that wait for a retry.",
            queue.oldest_claimable_seconds or 0.0,
        )
        yield _gauge("quantry_workers", "Workers that reported within the last lease.", queue.workers)
        if queue.seconds_since_claim is not None:
            yield _gauge(
                "quantry_last_claim_age_seconds", "Seconds since a worker last took a job.", queue.seconds_since_claim
            )


def _gauge(name: str, description: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, description, value=value)


def _by_status(name: str, description: str, counts: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, description, labels=("status",))
    for status, count in counts.items():
        family.add_metric((status,), count)
    return family
