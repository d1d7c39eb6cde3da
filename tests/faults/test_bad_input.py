"""P10: bad input is never a 5xx: every error is a problem document, and nothing that was sent comes back in it.

The requests go over raw sockets, where a client library would refuse or repair them.
"""

import http.client
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, event, example, given, settings

from api.main import create_app
from jobs.kit.errors import JobProblem
from tests.api_server import serving
from tests.faults.hostile import MARK, Route, Sent, requests_of, routes_of, whole
from tests.faults.scale import scaled
from tests.integration.api.conftest import Hands
from tests.integration.worker.conftest import TENANT, Office

REQUESTS: Final = scaled(400, 10_000)
DOCUMENT: Final = create_app().openapi()
PROBLEM: Final = JobProblem(code="unsafe_checkpoint", category="user", detail="Corrupt.", hint="Fetch it again.")

Exchange = Callable[[Sent], tuple[http.client.HTTPResponse, bytes]]


@pytest.fixture
def url(office: Office) -> Iterator[str]:
    """An API that takes small bodies only."""
    with serving(create_app(office.settings.model_copy(update={"max_body_bytes": 100_000}))) as url:
        yield url


@pytest.fixture
def ids(office: Office, url: str) -> dict[str, str]:
    """Something real by each path parameter's name, and jobs in other states."""
    hands = Hands(office.leases, office.store, office.settings.work_dir)
    finished, failed, queued = office.submit("succeed"), office.submit("succeed"), office.submit("succeed")
    hands.publish(hands.claim())
    assert office.leases.fail(hands.claim(), PROBLEM)
    files = office.queries.list_artifacts(finished, tenant=TENANT).data
    hook = httpx.post(f"{url}/v1/webhooks", json={"url": "https://example.com/hook"}).json()
    test = httpx.post(f"{url}/v1/webhooks/{hook['id']}/test").json()
    return {
        "job_id": finished, "failed": failed, "queued": queued, "artifact_id": files[0].id,
        "webhook_id": hook["id"], "delivery_id": test["id"],
    }  # fmt: skip


def ids_for(sent: Sent, ids: Mapping[str, str]) -> dict[str, str]:
    """What the request may be about: what it would delete must not be what the others ask for."""
    if sent.route.method == "DELETE":
        return {"job_id": ids["queued"]}
    return {**ids, "job_id": ids["failed"]} if sent.route.path.endswith("/retry") else dict(ids)


@pytest.fixture
def send(url: str, ids: dict[str, str]) -> Exchange:
    """Sends a request as it is."""
    address = urlsplit(url)

    def send(sent: Sent) -> tuple[http.client.HTTPResponse, bytes]:
        headers = {**({"Content-Type": "application/json"} if sent.has_body else {}), **sent.headers}
        headers["Host"] = address.netloc
        if sent.has_body:
            headers["Content-Length"] = str(len(sent.body))
        target = sent.target(ids_for(sent, ids))
        lines = [f"{sent.route.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            connection.sendall(head + (sent.body if sent.has_body else b""))
            response = http.client.HTTPResponse(connection, method=sent.route.method)
            response.begin()
            return response, response.read()

    return send


def judge(send: Exchange, sent: Sent) -> int:
    """The status, once the answer has been found to be one that a client can use."""
    response, body = send(sent)
    ready = sent.route.path == "/readyz" and response.status == 503  # there is no worker
    assert response.status < 500 or ready, body
    assert response.headers["X-Request-ID"]
    if response.status < 400 or sent.route.method == "HEAD":
        return response.status
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = json.loads(body)
    assert problem["status"] == response.status
    assert problem["request_id"] == response.headers["X-Request-ID"]
    assert problem["code"]
    assert len(problem["detail"]) > 20
    if MARK not in sent.headers.get("X-Request-ID", ""):
        assert MARK not in body.decode()
        assert MARK not in str(response.headers)
    return response.status


def test_every_route_of_the_document_is_asked_and_answers(send: Exchange) -> None:
    """So that most generated requests are about something, and a new resource can not go without."""
    asked = [(route, judge(send, whole(route))) for route in routes_of(DOCUMENT)]
    missing = {route.path for route, status in asked if status == 404 and route.method != "DELETE"}
    assert missing <= {path for path in DOCUMENT["paths"] if "{publication_id}" in path or "{credential_id}" in path}


TOKEN_IN_THE_WRONG_FIELD: Final = Sent(
    Route("POST", "/v1/credentials"), "", True, "", {}, json.dumps({"name": "mine", "kind": f"hf_{MARK}"}).encode()
)
NUL_BEHIND_A_KEY: Final = Sent(
    Route("POST", "/v1/jobs/{job_id}/cancel"), "%00", False, "", {"Idempotency-Key": "k"}, b""
)


@pytest.mark.timeout(scaled(600, 7200))
@example(TOKEN_IN_THE_WRONG_FIELD)
@example(NUL_BEHIND_A_KEY)
@given(requests_of(DOCUMENT))
@settings(
    max_examples=REQUESTS,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_request_breaks_the_service(send: Exchange, sent: Sent) -> None:
    event(f"status {judge(send, sent)}")
