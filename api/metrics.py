"""What Prometheus scrapes: requests by route, and jobs by status as the database has them at that moment."""

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The meters of one application, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "quantry_http_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "quantry_http_request_duration_seconds",
            "Seconds from a request's arrival to the end of its response.",
            ("method", "route"),
            registry=self._registry,
        )

    def observe(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. An unknown method is counted as OTHER, so that clients can not invent series."""
        label = method if method in _METHODS else "OTHER"
        self._requests.labels(label, route, str(status)).inc()
        self._seconds.labels(label, route).observe(seconds)

    def render(self, jobs: Mapping[str, int] | None) -> bytes:
        """The text exposition, with ``jobs`` by status; None, when the database does not answer, leaves them out."""
        text = generate_latest(self._registry)
        if jobs is None:
            return text
        snapshot = CollectorRegistry()
        gauge = Gauge("quantry_jobs", "Jobs in the database.", ("status",), registry=snapshot)
        for status, count in jobs.items():
            gauge.labels(status).set(count)
        return text + generate_latest(snapshot)
