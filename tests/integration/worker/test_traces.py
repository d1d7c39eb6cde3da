"""One trace from a client's request over the job to its stages, through a real API, worker and collector."""

import dataclasses
from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from api.main import create_app
from jobs.observability.otlp import OtlpTracing
from tests.api_server import serving
from tests.integration.worker.conftest import Office, eventually
from tests.otlp_receiver import Received, Receiver, black_hole, otlp_receiver
from worker.outcomes import Outcome
from worker.telemetry.ports import Telemetry

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
KEY = "operator-key-of-this-test"
SERVER, CONSUMER, INTERNAL = 2, 5, 1  # as OTLP numbers the kinds of spans


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A collector, and exporters that do not let it wait for five seconds."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with otlp_receiver() as receiver:
        yield receiver


def post(office: Office, endpoint: str, model: str) -> httpx.Response:
    """Submit over HTTP, as a client that traces does."""
    settings = office.settings.model_copy(update={"otlp_endpoint": endpoint, "api_key": SecretStr(KEY)})
    with serving(create_app(settings)) as url:
        return httpx.post(
            f"{url}/v1/jobs",
            json={"model": {"source": "local", "id": model}, "policy": {"preset": "trainable-smoothrot-w4a4"}},
            headers={
                "Authorization": f"Bearer {KEY}",
                "X-Request-ID": "request-of-this-test",
                "traceparent": f"00-{TRACE}-{SPAN}-01",
            },
        )


def one(spans: list[Received], name: str) -> Received:
    [found] = [span for span in spans if span.name == name]
    return found


def test_a_request_its_job_and_the_stages_are_one_trace(office: Office, receiver: Receiver) -> None:
    response = post(office, receiver.url, "succeed")
    assert response.status_code == 202, response.text
    job_id = response.json()["id"]
    office.start_worker(QUANTRY_OTLP_ENDPOINT=receiver.url, OTEL_EXPORTER_OTLP_HEADERS="api-key=of-the-collector")
    office.wait(job_id, "succeeded", "failed")
    eventually(lambda: any(span.name == "job attempt" for span in receiver.spans))
    spans = receiver.of(TRACE)

    request = one(spans, "POST /v1/jobs")
    assert (request.service, request.kind, request.parent_id) == ("quantry-api", SERVER, SPAN)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/jobs",
        "http.response.status_code": 202,
        "quantry.request.id": "request-of-this-test",
    }
    attempt = one(spans, "job attempt")
    assert (attempt.service, attempt.kind, attempt.parent_id) == ("quantry-worker", CONSUMER, request.span_id)
    assert attempt.attributes == {
        "quantry.job.id": job_id,
        "quantry.job.attempt": 1,
        "quantry.job.fence": 1,
        "quantry.request.id": "request-of-this-test",
        "quantry.attempt.outcome": "succeeded",
        "quantry.runner.cpu_peak_bytes": 3_000_000_000,
    }
    assert not attempt.failed

    stages = [span for span in spans if span.name.startswith("stage ")]
    assert [stage.attributes for stage in stages] == [
        {"quantry.stage.name": name, "quantry.stage.reused": name == "load"}
        for name in ("resolve", "load", "calibrate", "train", "publish")
    ]
    for stage in stages:
        assert (stage.kind, stage.parent_id) == (INTERNAL, attempt.span_id)
        assert request.began <= attempt.began <= stage.began <= stage.ended <= attempt.ended
    assert len(spans) == 2 + len(stages), "and nothing else: no library traces itself"
    assert receiver.headers[-1]["api-key"] == "of-the-collector"
    assert not any(KEY.encode() in body for body in receiver.bodies)


def test_a_failed_attempt_and_the_stage_that_it_ended_in_are_marked(office: Office, receiver: Receiver) -> None:
    office.submit("refuse")
    tracing = OtlpTracing(receiver.url, "quantry-worker")
    supervisor = dataclasses.replace(office.supervisor(), telemetry=Telemetry(tracing=tracing))
    assert supervisor.run_next() is Outcome.FAILED
    tracing.stop()
    spans = receiver.spans
    assert one(spans, "job attempt").failed
    assert one(spans, "job attempt").attributes["quantry.attempt.outcome"] == "failed"
    assert one(spans, "stage load").failed
    assert not one(spans, "stage resolve").failed


def test_a_collector_that_never_answers_delays_neither_a_request_nor_a_job(office: Office) -> None:
    with black_hole() as url:
        office.start_worker(QUANTRY_OTLP_ENDPOINT=url)
        response = post(office, url, "succeed")
        assert response.elapsed.total_seconds() < 3, "the exporter's own limit is five"
        job_id = response.json()["id"]
        assert office.wait(job_id, "succeeded", "failed").status == "succeeded"
        worker = office.workers[-1]
        worker.terminate()
        assert worker.wait(30) == 0
