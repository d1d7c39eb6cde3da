"""Every refusal is a problem document with a code, a remedy and the request's id. Nothing here needs a database."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import structlog

from api.main import create_app
from jobs.kit.errors import InstallationError
from jobs.settings import Settings
from tests.api_server import serving

_KEY = "operator-key-of-this-test"
_SENT = "zzSentinelValue42"
_UNREACHABLE = "postgresql://nobody@127.0.0.1:1/none"  # nothing listens on port 1
_MEMBERS = {"type", "title", "status", "detail", "instance", "code", "request_id"}


@contextmanager
def _client(directory: Path, **settings: Any) -> Iterator[httpx.Client]:
    chosen = Settings(data_dir=directory, database_url=_UNREACHABLE, max_body_bytes=2048, **settings)
    with serving(create_app(chosen)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with _client(tmp_path_factory.mktemp("data")) as client:
        yield client


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with _client(tmp_path_factory.mktemp("data"), api_key=_KEY) as client:
        yield client


def _problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert set(problem) >= _MEMBERS
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["type"] == f"urn:quantry:problem:{code}"
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["request_id"] in problem["instance"]
    assert _SENT not in response.text
    assert len(problem["detail"]) > 20
    return problem


def test_unknown_route(client: httpx.Client) -> None:
    for path in (f"/{_SENT}", f"/v1/{_SENT}", "/v1/jobs/", "/v1/plans", f"/v1/jobs/a%2Fb{_SENT}", "/%00%ff"):
        _problem(client.get(path), 404, "route_not_found")


def test_wrong_method(client: httpx.Client) -> None:
    response = client.put("/v1/jobs/x")
    _problem(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) & {"GET", "DELETE"}


def test_wrong_media_type(client: httpx.Client) -> None:
    response = client.post("/v1/jobs", content=_SENT, headers={"Content-Type": "text/plain"})
    _problem(response, 415, "unsupported_media_type")


def test_malformed_json(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    _problem(client.post("/v1/jobs", content='{"a": ' + _SENT, headers=headers), 400, "malformed_json")


def test_wrong_fields(client: httpx.Client) -> None:
    problem = _problem(
        client.post("/v1/jobs", json={"model": {"id": f"/{_SENT}"}, "policy": {"preset": "w4a16"}}),
        422,
        "invalid_request",
    )
    assert problem["errors"] == [
        {"pointer": "/model/id", "code": "string_pattern_mismatch", "detail": problem["errors"][0]["detail"]}
    ]


def test_large_body(client: httpx.Client) -> None:
    _problem(client.post("/v1/jobs", json={"model": "x" * 3000}), 413, "body_too_large")

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    headers = {"Content-Type": "application/json"}
    _problem(client.post("/v1/jobs", content=endless(), headers=headers), 413, "body_too_large")


@pytest.mark.parametrize(
    ("query", "pointer", "code"),
    [
        (f"limit={_SENT}", "?limit", "int_parsing"),
        ("limit=0", "?limit", "greater_than_equal"),
        ("limit=101", "?limit", "less_than_equal"),
        ("limit=1e400", "?limit", "int_parsing"),
        ("limit=99999999999999999999999", "?limit", "less_than_equal"),
        ("limit=1&limit=2", "?limit", "given_twice"),
        ("limt=1", "?limt", "unknown_parameter"),
        (f"%00{_SENT}=1", "?", "unknown_parameter"),
        (f"status={_SENT}", "?status", "enum"),
        ("after=%00", "?after", "string_pattern_mismatch"),
        ("model=%ff", "?model", "string_pattern_mismatch"),
        (f"metadata={_SENT}", "?metadata", "unknown_parameter"),
        (f"metadata[]={_SENT}", "?", "unknown_parameter"),
        (f"metadata[k]=%00{_SENT}", "?metadata", "value_error"),
        (f"metadata[%20{_SENT}]=v", "?metadata", "string_pattern_mismatch"),
    ],
)
def test_wrong_parameters(client: httpx.Client, query: str, pointer: str, code: str) -> None:
    problem = _problem(client.get(f"/v1/jobs?{query}"), 422, "invalid_request")
    assert [(error["pointer"], error["code"]) for error in problem["errors"]] == [(pointer, code)]


def test_a_path_without_parameters_takes_none(client: httpx.Client) -> None:
    problem = _problem(client.get("/v1/presets?verbose=1"), 422, "invalid_request")
    assert "no query parameters" in problem["errors"][0]["detail"]


@pytest.mark.parametrize("key", ["", "é", "k" * 256])
def test_idempotency_keys_are_short_printable_ascii(client: httpx.Client, key: str) -> None:
    headers = {"Idempotency-Key": key.encode()}
    body = {"model": {"source": "local", "id": "tiny"}, "policy": {"preset": "w8a8"}}
    problem = _problem(client.post("/v1/jobs", json=body, headers=headers), 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == "?Idempotency-Key"


def test_the_database_is_away(client: httpx.Client) -> None:
    response = client.get("/v1/jobs")
    _problem(response, 503, "unavailable")
    assert int(response.headers["retry-after"]) > 0


def test_alive_but_not_ready_without_a_database(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    problem = _problem(client.get("/readyz"), 503, "not_ready")
    assert {name: check["status"] for name, check in problem["checks"].items()} == {
        "database": "down",
        "broker": "not_configured",
        "workers": "down",
    }


def test_metrics_survive_the_database(client: httpx.Client) -> None:
    client.get("/v1/presets")
    client.request("PROPFIND", "/v1/presets")
    text = client.get("/metrics").text
    assert 'quantry_http_requests_total{method="GET",route="/v1/presets",status="200"}' in text
    assert 'method="OTHER"' in text
    assert "PROPFIND" not in text
    assert "quantry_jobs" not in text


def test_a_bug_is_a_problem_that_tells_nothing(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(_SENT)

    monkeypatch.setattr("api.metrics.Metrics.render", broken)
    with structlog.testing.capture_logs() as logged:
        _problem(client.get("/metrics"), 500, "internal_error")
    [bug] = [entry for entry in logged if entry["event"] == "request_crashed"]
    assert (bug["log_level"], bug["exc_info"]) == ("error", True)


def test_request_ids_are_kept_if_safe_and_made_if_not(client: httpx.Client) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "abc-123.X_y"}).headers["x-request-id"] == "abc-123.X_y"
    for unsafe in ("", "a b", "x" * 129, "<script>", 'a"b'):
        made = client.get("/healthz", headers={"X-Request-ID": unsafe}).headers["x-request-id"]
        assert made != unsafe
        assert len(made) == 32
    assert client.get("/healthz").headers["x-request-id"] != client.get("/healthz").headers["x-request-id"]


@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", f"Basic {_KEY}", _KEY, "Bearer", f"Bearer {_KEY}x", "Bearer é".encode()]
)
def test_without_the_operators_key(locked: httpx.Client, authorization: str | bytes | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for path in ("/v1/presets", "/v1/jobs", "/v1/jobs/x/events", "/v1/artifacts/x/content", "/metrics"):
        response = locked.get(path, headers=headers)
        problem = _problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
        assert _KEY not in str(problem)


def test_a_stranger_is_refused_before_the_body_is_read(locked: httpx.Client) -> None:
    _problem(locked.post("/v1/jobs", content=b"x" * 5000), 401, "unauthorized")


def test_with_the_operators_key(locked: httpx.Client) -> None:
    response = locked.get("/v1/presets", headers={"Authorization": f"Bearer {_KEY}"})
    assert response.status_code == 200
    assert "trainable-smoothrot-w4a4" in {preset["name"] for preset in response.json()["data"]}
    assert locked.get("/healthz").status_code == 200
    assert locked.get("/openapi.json").status_code == 200


def test_docs(client: httpx.Client) -> None:
    assert "text/html" in client.get("/docs").headers["content-type"]


def test_no_database_no_start(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path, database_url=None))

    async def start() -> None:
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(InstallationError, match="QUANTRY_DATABASE_URL"):
        anyio.run(start)
