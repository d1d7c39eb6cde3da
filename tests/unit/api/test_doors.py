"""Hosts, origins, sizes and slow bodies, against a real server. A program without a browser notices none of it."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.doors.middleware import MAX_HEADER_BYTES, MAX_HEADERS, MAX_TARGET_BYTES
from api.http_protocol import MAX_HEAD_BYTES, BoundedHttp
from api.main import create_app
from jobs.settings import Settings
from tests.api_server import cuts_off_an_endless_head, serving

_UNREACHABLE = "postgresql://nobody@127.0.0.1:1/none"
_SENT = "zzSentinelValue42"


@contextmanager
def _client(directory: Path, **settings: Any) -> Iterator[httpx.Client]:
    app = create_app(Settings(data_dir=directory, database_url=_UNREACHABLE, **settings))
    with serving(app, http=BoundedHttp) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of an installation as ``quantry serve`` starts it: no key, no names, no origins."""
    with _client(tmp_path_factory.mktemp("data"), body_seconds=1.0) as client:
        yield client


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of an installation with names and pages of its own."""
    with _client(
        tmp_path_factory.mktemp("data"),
        host="quantry.internal",
        api_key="k" * 32,
        allowed_hosts="api, *.Example.com, 192.0.2.7, 2001:DB8::7",
        allowed_origins="http://localhost:3000, https://ui.example.org:443/".rstrip("/"),
    ) as client:
        yield client


def _raw(client: httpx.Client, head: str, body: bytes = b"") -> tuple[int, bytes]:
    """Send bytes as they are, and return the status and everything that came back."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode("latin-1") + body)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return int(answer.split(b" ", 2)[1]), answer


_OURS = (
    *("localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.0.0.1:1", "127.8.9.1:8000"),
    *("[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]"),
)
_OTHERS = (
    *("evil.example", "evil.example:8000", f"{_SENT}.example", "localhost.evil.example", "127.0.0.1.evil.example"),
    *("evil-localhost", "localhost@evil.example", "evil.example@localhost", "localhost,evil.example", "localhost/x"),
    *("192.168.1.5", "10.0.0.1:8000", "0.0.0.0:8000", "[::]", "[2001:db8::1]", "2130706433", "127.1", "0x7f.1"),
    *("", "::1", "[::1", "localhost:", "localhost:x", "localhost:123456", "localhost..", "local host", "[localhost]"),
    *("a" * 300, "*", "localhost\xa0", "l\u043ecalhost".encode().decode("latin-1")),
)


@pytest.mark.parametrize("host", _OURS)
def test_loopback_names_are_answered(client: httpx.Client, host: str) -> None:
    assert client.get("/v1/presets", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", _OTHERS)
def test_other_names_are_misdirected(client: httpx.Client, host: str) -> None:
    for method, path in (("GET", "/v1/presets"), ("GET", "/openapi.json"), ("GET", "/docs"), ("POST", "/v1/jobs")):
        response = client.request(method, path, headers={"Host": host.encode("latin-1")})
        assert (response.status_code, response.json()["code"]) == (421, "misdirected_request"), (method, path)
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["x-request-id"] == response.json()["request_id"]
    assert "QUANTRY_ALLOWED_HOSTS" in response.json()["detail"]
    assert _SENT not in response.text


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        ("", 421),
        ("Host: localhost\nHost: localhost\n", 421),
        ("Host: localhost\nHost: evil.example\n", 421),
        ("Host: evil.example\nhost: localhost\n", 421),
        ("Host: localhost\n", 200),
        ("HOST:   LocalHost:8000  \n", 200),
    ],
)
def test_exactly_one_host_is_named(client: httpx.Client, hosts: str, status: int) -> None:
    assert _raw(client, f"GET /v1/presets HTTP/1.1\n{hosts}Connection: close\n\n")[0] == status


def test_an_old_client_without_a_host_is_misdirected(client: httpx.Client) -> None:
    assert _raw(client, "GET /v1/presets HTTP/1.0\n\n")[0] == 421


def test_a_host_in_the_target_changes_nothing(client: httpx.Client) -> None:
    """Only proxies are sent such targets; a browser's page can not make it send one."""
    for authority, host, status in (
        ("localhost", "localhost", 200),
        ("evil.example", "localhost", 200),
        ("localhost", "evil.example", 421),
    ):
        head = f"GET http://{authority}/v1/presets HTTP/1.1\nHost: {host}\nConnection: close\n\n"
        assert _raw(client, head)[0] == status, (authority, host)


def test_orchestrators_probe_by_address(client: httpx.Client) -> None:
    for host in ("10.1.2.3:8000", "[2001:db8::5]:8000", "localhost"):
        assert client.get("/healthz", headers={"Host": host}).status_code == 200
        assert client.get("/readyz", headers={"Host": host}).status_code == 503, "there is no database"
    for path in ("/healthz", "/readyz"):
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 421, "a name can be rebound"
    assert client.get("/metrics", headers={"Host": "10.1.2.3"}).status_code == 421


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("api:8000", "API", "a.example.com", "a.b.EXAMPLE.com.", "quantry.internal:80")),
        *((host, 200) for host in ("192.0.2.7", "[2001:db8:0::7]:80", "localhost", "127.0.0.1")),
        *((host, 421) for host in ("example.com", "badexample.com", "a.example.com.evil", "xapi", "192.0.2.8")),
    ],
)
def test_configured_names(configured: httpx.Client, host: str, status: int) -> None:
    headers = {"Host": host, "Authorization": f"Bearer {'k' * 32}"}
    assert configured.get("/v1/presets", headers=headers).status_code == status


def test_a_star_allows_every_name_but_no_malformed_one(tmp_path: Path) -> None:
    with _client(tmp_path, allowed_hosts="*") as client:
        assert client.get("/v1/presets", headers={"Host": "anything.example"}).status_code == 200
        assert client.get("/v1/presets", headers={"Host": "any thing"}).status_code == 421


_CHANGES = (
    ("POST", "/v1/jobs"),
    ("POST", "/v1/jobs/x/cancel"),
    ("DELETE", "/v1/jobs/x"),
    ("PATCH", "/v1/webhooks/x"),
    ("POST", "/v1/credentials"),
    ("PUT", "/anything"),
)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": f"https://{_SENT}.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://localhost.evil.example:8000"},
        {"Origin": "http://localhost:8000@evil.example"},
        {"Origin": "file://"},
        {"Origin": "chrome-extension://abc"},
        {"Origin": "http://127.0.0.1:8000"},
        {"Origin": "http://localhost:8000, https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "Same-Site"},
        {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_pages_of_others_change_nothing(client: httpx.Client, headers: dict[str, str]) -> None:
    for method, path in _CHANGES:
        sent = {"Host": "localhost:8000", "Content-Type": "text/plain", **headers}
        response = client.request(method, path, content=b"{}", headers=sent)
        assert (response.status_code, response.json()["code"]) == (403, "foreign_origin"), (method, path)
        assert "access-control-allow-origin" not in response.headers
        assert _SENT not in response.text
    assert "QUANTRY_ALLOWED_ORIGINS" in response.json()["detail"]
    # A page may send a GET, but the browser does not show it the answer.
    read = client.get("/v1/presets", headers={"Host": "localhost:8000", **headers})
    assert (read.status_code, "access-control-allow-origin" in read.headers) == (200, False)


def test_two_origins_are_foreign(client: httpx.Client) -> None:
    origin = f"Origin: {client.base_url}\n".replace("/\n", "\n")
    host = f"{client.base_url.host}:{client.base_url.port}"
    head = f"POST /v1/jobs/x/cancel HTTP/1.1\nHost: {host}\nConnection: close\nContent-Length: 0\n"
    assert _raw(client, f"{head}{origin}\n")[0] == 404, "such an id is not looked up"
    assert _raw(client, f"{head}{origin}{origin}\n")[0] == 403


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("localhost:8000", {}),
        ("localhost:8000", {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}),
        ("LOCALHOST:8000", {"Origin": "http://localhost:8000"}),
        ("[::1]:8000", {"Origin": "http://[::1]:8000"}),
        ("localhost", {"Origin": "https://localhost"}),
        ("localhost:443", {"Origin": "https://localhost"}),
        ("localhost", {"Sec-Fetch-Site": "none"}),
    ],
)
def test_programs_and_our_own_page_change_things(client: httpx.Client, host: str, headers: dict[str, str]) -> None:
    response = client.post("/v1/jobs", json={}, headers={"Host": host, **headers})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


def test_a_page_of_the_operator_may_use_the_api(configured: httpx.Client) -> None:
    for origin in ("http://localhost:3000", "https://ui.example.org"):
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        wants = {"Access-Control-Request-Headers": "authorization,content-type,idempotency-key"}
        preflight = configured.options("/v1/jobs", headers={**asks, **wants})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == origin
        sent = {"Origin": origin, "Sec-Fetch-Site": "cross-site", "Authorization": f"Bearer {'k' * 32}"}
        response = configured.post("/v1/jobs", json={}, headers=sent)
        assert response.status_code == 422
        assert response.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in response.headers
        assert "X-Request-ID" in response.headers["access-control-expose-headers"]
    asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    refused = configured.options("/v1/jobs", headers=asks)
    assert "access-control-allow-origin" not in refused.headers


def test_long_targets_and_headers(client: httpx.Client) -> None:
    assert client.get(f"/v1/jobs/{'x' * MAX_TARGET_BYTES}").json()["code"] == "uri_too_long"
    assert client.get("/v1/jobs?" + "&".join(["a"] * MAX_TARGET_BYTES)).status_code == 414
    assert client.get("/healthz", headers={"X-Long": "x" * MAX_HEADER_BYTES}).json()["code"] == "headers_too_large"
    assert client.get("/healthz", headers=[("X-Many", "x")] * (MAX_HEADERS + 1)).status_code == 431
    assert client.get("/healthz", headers=[("X-Many", "x")] * (MAX_HEADERS - 10)).status_code == 200


def test_a_head_that_does_not_end_is_cut_off(client: httpx.Client) -> None:
    address = client.base_url.host, client.base_url.port or 80
    assert cuts_off_an_endless_head(*address, after=100 * MAX_HEAD_BYTES)
    # Long heads that do end, one after the other on one connection, are not added up.
    for _ in range(6):
        assert client.get("/healthz", headers={"X-Long": "x" * (MAX_HEADER_BYTES - 1000)}).status_code == 200


def test_a_body_that_does_not_arrive_is_given_up_and_holds_nobody_up(client: httpx.Client) -> None:
    head = "POST /v1/jobs HTTP/1.1\nHost: localhost\nContent-Type: application/json\nContent-Length: 1000\n\n"
    began = time.monotonic()
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"{")
        for _ in range(8):
            assert client.post("/v1/jobs", json={}).status_code == 422
        answer = connection.recv(65536)
        while part := connection.recv(65536):
            answer += part
    assert 0.9 < time.monotonic() - began < 8
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b'"code":"request_timeout"' in answer


def test_a_large_body_announces_its_length(client: httpx.Client) -> None:
    def parts(size: int) -> Iterator[bytes]:
        yield b'{"model": "' + b"x" * size + b'"}'

    headers = {"Content-Type": "application/json"}
    assert client.post("/v1/jobs", content=parts(200_000), headers=headers).status_code == 422
    refused = client.post("/v1/jobs", content=parts(300_000), headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (411, "length_required")
    announced = b"".join(parts(300_000))
    assert client.post("/v1/jobs", content=announced, headers=headers).status_code == 422


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", path) for path in ("/v1/webhooks", "/v1/credentials", "/v1/jobs/x/publications")),
        *(("POST", path) for path in ("/v1/jobs/x/cancel", "/v1/jobs/x/retry", "/v1/webhooks/x/rotate")),
        ("PATCH", "/v1/webhooks/x"),
    ],
)
def test_only_requests_with_text_may_be_large(client: httpx.Client, method: str, path: str) -> None:
    body = b'{"url": "' + b"x" * (256 << 10) + b'"}'
    response = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert "262144 bytes" in response.json()["detail"]
