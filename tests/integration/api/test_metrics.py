"""What Prometheus gets of the API, read with Prometheus' own parser."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, update

from api.main import create_app
from jobs.job.overview import Overview
from jobs.repository.database import Database
from jobs.repository.models import Job
from jobs.settings import Settings
from tests.api_server import serving
from tests.integration.api.conftest import Hands

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(client: httpx.Client) -> Samples:
    """Every sample by its name and labels."""
    response = client.get("/metrics")
    assert response.status_code == 200
    families = list(text_string_to_metric_families(response.text))
    assert len({family.name for family in families}) == len(families), "each family once"
    assert all(family.documentation for family in families)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def of(samples: Samples, name: str, **labels: str) -> float:
    """One sample's value."""
    return samples[name, tuple(sorted(labels.items()))]


def test_metrics_tell_what_the_database_knows(
    client: httpx.Client, submit: Callable[..., dict[str, Any]], hands: Hands, database: Database
) -> None:
    empty = scraped(client)
    assert of(empty, "quantry_queue_oldest_job_age_seconds") == 0
    assert ("quantry_last_claim_age_seconds", ()) not in empty
    for _ in range(3):
        submit()
    hands.leases.beat_worker("test-worker", hostname="here", pid=1, device="cpu")
    hands.publish(hands.claim())
    hands.claim()
    ago = func.clock_timestamp() - timedelta(seconds=100)
    with database.transaction() as session:
        session.execute(update(Job).where(Job.status == "queued").values(queued_at=ago))
    samples = scraped(client)
    statuses = {"queued": 1, "running": 1, "succeeded": 1, "cancelling": 0, "failed": 0, "cancelled": 0}
    for status, count in statuses.items():
        assert of(samples, "quantry_jobs", status=status) == count, status
    assert 100 <= of(samples, "quantry_queue_oldest_job_age_seconds") < 160
    assert 0 < of(samples, "quantry_queue_oldest_claimable_job_age_seconds") < 90
    assert of(samples, "quantry_workers") == 1
    assert 0 <= of(samples, "quantry_last_claim_age_seconds") < 60
    assert of(samples, "quantry_publications", status="queued") == 0
    assert of(samples, "quantry_webhook_deliveries", status="pending") == 0
    assert of(samples, "quantry_database_up") == 1


def test_metrics_tell_of_requests_and_of_the_process(
    client: httpx.Client, submit: Callable[..., dict[str, Any]]
) -> None:
    job_id = submit()["id"]
    client.get(f"/v1/jobs/{job_id}")
    client.get("/v1/jobs/nothing-like-this")
    client.request("PROPFIND", f"/no/{job_id}")
    samples = scraped(client)
    assert of(samples, "quantry_http_requests_total", method="POST", route="/v1/jobs", status="202") == 1
    assert of(samples, "quantry_http_requests_total", method="GET", route="/v1/jobs/{job_id}", status="404") == 1
    assert of(samples, "quantry_http_requests_total", method="OTHER", route="unmatched", status="404") == 1
    assert of(samples, "quantry_http_request_duration_seconds_count", method="POST", route="/v1/jobs") == 1
    assert of(samples, "quantry_http_requests_in_flight") == 1, "this one"
    assert of(samples, "quantry_nudge_failures_total") == 0
    assert of(samples, "process_resident_memory_bytes") > 10_000_000
    values = {value for _, labels in samples for _, value in labels}
    assert not any(job_id in value or "nothing" in value for value in values), "ids are no labels"


@pytest.fixture
def lonely(settings: Settings) -> Iterator[httpx.Client]:
    """An API whose database is away and whose broker takes no connection."""
    away = settings.model_copy(
        update={"database_url": type(settings.database_url)("postgresql://nobody@127.0.0.1:1/x")}
    )
    with serving(create_app(away)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def test_metrics_go_on_without_the_database(lonely: httpx.Client) -> None:
    samples = scraped(lonely)
    assert of(samples, "quantry_database_up") == 0
    assert not any(name == "quantry_jobs" for name, _ in samples)
    assert of(samples, "quantry_http_requests_in_flight") == 1


def test_a_count_that_takes_long_is_kept_a_hundred_times_as_long(
    database: Database, settings: Settings, submit: Callable[..., dict[str, Any]], hands: Hands
) -> None:
    now, slow = 0.0, 1.0

    def clock() -> float:
        nonlocal now
        now += slow  # between the two readings around a count, too
        return now

    overview = Overview(database, settings, clock=clock)
    assert overview.installation().jobs["succeeded"] == 0
    submit()
    hands.publish(hands.claim())
    submit()
    seen = overview.installation().jobs
    assert (seen["succeeded"], seen["queued"]) == (0, 1), "the queue is always fresh"
    now += 100 * slow
    assert overview.installation().jobs["succeeded"] == 1
    slow = 0.01
    now += 100.0
    overview.installation()
    hands.publish(hands.claim())
    assert overview.installation().jobs["succeeded"] == 2, "a quick one is asked each time"
