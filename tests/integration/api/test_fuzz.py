"""Generated requests over every route: no 5xx, every error a problem document, nothing that was sent comes back.

They go over raw sockets, where a client library would refuse or repair them.
"""

import copy
import http.client
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

_MARK = "zqSentinel"
_NUMBERS = ("1e400", "-1e400", "NaN", "-Infinity", "1" * 400, str(2**31), str(2**63), str(-(2**70)), "-0.0", "1e-400")
_RAW = "@raw@"  # marks a JSON string that becomes the bare number behind the mark

_FULL_BODY: dict[str, Any] = {
    "model": {"source": "local", "id": "tiny", "revision": "main", "credential": None},
    "policy": {
        "version": 1,
        "preset": "trainable-smoothrot-w4a4",
        "weights": {"format": "int4", "granularity": "group", "group_size": 32, "symmetric": True},
        "activations": {"format": "int4", "granularity": "token", "clip_ratio": 1.0},
        "targets": ["down_proj", "re:.*"],
        "ignore": ["lm_head"],
        "transform": {"kind": "smooth_rotation", "alpha": 0.5, "statistic": {"kind": "quantile", "q": 0.997}},
        "search": {"kind": "grid", "alpha": [0.45], "q": [0.994], "layers": {"critical": 3, "normal": 2}},
        "training": {"steps": 800, "warmup": 5, "patience": 80, "learning_rates": [0.02]},
        "selection": {"kind": "lowest_error", "candidates": ["none"]},
        "overrides": [{"match": "re:.*", "weights": {"format": "int8"}}],
    },
    "calibration": {"dataset": {"texts": ["some text"]}, "samples": 256, "seed": 0, "holdout": 0.2},
    "evaluation": {"perplexity": {"dataset": "pydoc", "tokens": 16384}},
    "output": {"profile": "rotated", "hub": None},
    "limits": {"max_queue_seconds": 3600, "max_run_seconds": 14400},
    "metadata": {"team": "search"},
}

_CREDENTIAL: dict[str, Any] = {"name": "mine", "kind": "hub", "token": f"hf_{_MARK}"}
_HOOK: dict[str, Any] = {"url": f"https://example.com/{_MARK}", "events": ["job.failed"], "description": "mine"}
_TARGET: dict[str, Any] = {"repo": "me/tiny", "private": True, "revision": "main", "credential": None}

_text = st.one_of(
    st.just(_MARK),
    st.text(max_size=20).map(_MARK.__add__),
    st.sampled_from(["", "\x00", "\ud800", _MARK + "\x00", "a" * 300 + _MARK, "../" + _MARK]),
    st.sampled_from(["re:(" + _MARK, "re:(?P<" + _MARK, "re:a{9999999999}", "re:" + "(" * 200]),
)
_json = st.recursive(
    st.one_of(
        _text,
        st.sampled_from([f"{_RAW}{number}" for number in _NUMBERS]),
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_text, inner, max_size=3)),
    max_leaves=6,
)

Path = tuple[str | int, ...]


def _paths(value: object, here: Path = ()) -> list[Path]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, item in items for path in _paths(item, (*here, key)))]


def _at(body: object, path: Path) -> Any:
    for step in path:
        body = body[step]  # type: ignore[index]  # the path was made from this body
    return body


def _replaced(path: Path, value: object, whole: dict[str, Any] = _FULL_BODY) -> object:
    if not path:
        return value
    body = copy.deepcopy(whole)
    _at(body, path[:-1])[path[-1]] = value
    return body


def _extended(path: Path, key: str, value: object) -> object:
    body = copy.deepcopy(_FULL_BODY)
    holder = _at(body, path)
    if isinstance(holder, dict):
        holder[key] = value
    return body


def _encoded(value: object) -> bytes:
    text = json.dumps(value)
    for number in _NUMBERS:
        text = text.replace(f'"{_RAW}{number}"', number)
    return text.encode()


def _quoted(text: str, safe: str = "") -> str:
    return quote_from_bytes(text.encode("utf-8", "surrogatepass"), safe=safe)


_body_paths = st.sampled_from(_paths(_FULL_BODY))
_bodies = st.one_of(
    st.builds(_replaced, _body_paths, _json).map(_encoded),
    st.builds(_extended, _body_paths, _text, _json).map(_encoded),
    st.builds(_replaced, st.sampled_from(_paths(_CREDENTIAL)), _json, st.just(_CREDENTIAL)).map(_encoded),
    st.builds(_replaced, st.sampled_from(_paths(_TARGET)), _json, st.just(_TARGET)).map(_encoded),
    st.builds(_replaced, st.sampled_from(_paths(_HOOK)), _json, st.just(_HOOK)).map(_encoded),
    _json.map(_encoded),
    st.binary(max_size=60).map(_MARK.encode().__add__),
    st.sampled_from([b"", b"{}", b"null", b'{"a":1,"a":2}', b"\xff\xfe{}"]),
    st.sampled_from([b"[" * 50_000, b'{"a":' + b"1" * 5000 + b"}", b'"' + b"x" * 200_000 + b'"']),
)

_segments = st.one_of(
    st.sampled_from([b"job_" + b"0" * 24, b"art_" + b"0" * 24, b"\x00", b"\xff\xfe", b"..", b"a/b", b"%", b"x" * 3000]),
    st.binary(min_size=1, max_size=12).map(_MARK.encode().__add__),
).map(lambda raw: quote_from_bytes(raw, safe=""))

_parameter_names = st.one_of(
    st.sampled_from(["limit", "after", "status", "model", "sort", "metadata[team]", "metadata[]", "metadata[\x00]"]),
    _text,
)
_parameter_values = st.one_of(
    st.sampled_from(["0", "1", "-1", "1e400", "NaN", str(2**31), str(2**70), "9" * 5000, "", "-error", "block"]),
    _text,
)
_queries = st.just("") | st.lists(st.tuples(_parameter_names, _parameter_values), max_size=3).map(
    lambda pairs: "&".join(f"{_quoted(name, safe='[]')}={_quoted(value)}" for name, value in pairs)
)

_latin = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)
_header_values = st.one_of(
    st.sampled_from(["", "*", "*/*", "application/json", "text/event-stream", "text/csv", "text/plain", ";q=;,,"]),
    st.sampled_from(["bytes=0-5", "bytes=-0", "bytes=9999999999999-", 'W/"1"', '"' * 500]),
    st.sampled_from(["1e400", str(2**70), "-1", "Bearer x", "a" * 256]),
    _latin.map(_MARK.__add__),
)
_header_names = st.sampled_from(
    [
        *("Accept", "Content-Type", "Range", "If-Range", "If-None-Match", "Last-Event-ID"),
        *("Idempotency-Key", "X-Request-ID", "Authorization", "Cookie", "Accept-Encoding"),
    ]
)
_headers = st.just({}) | st.dictionaries(_header_names, _header_values, max_size=3)


@dataclass(frozen=True, repr=False)
class Sent:
    """One request; ``{job}`` and ``{artifact}`` in the path stand for real ids, ``{any}`` for ``segment``."""

    method: str
    path: str
    segment: str
    query: str
    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        """Short enough to print."""
        body = f"{self.body[:500]!r} of {len(self.body)} bytes"
        return f"<{self.method} {self.path} {self.segment[:200]} ?{self.query[:500]} {self.headers} {body}>"


_JOB_ROUTES = ("", "/events", "/layers", "/report", "/artifacts", "/archive", "/publications")
_PLAIN_ROUTES = ("/v1/jobs", "/v1/presets", "/v1/capabilities", "/healthz", "/metrics", "/{any}", "/v1/{any}")
_routes = st.just(("POST", "/v1/jobs")) | st.sampled_from(
    [
        ("POST", "/v1/jobs/{any}/cancel"),
        ("POST", "/v1/jobs/{job}/cancel"),
        ("DELETE", "/v1/jobs/{any}"),
        ("POST", "/v1/jobs/{any}/publications"),
        ("POST", "/v1/jobs/{job}/publications"),
        ("GET", "/v1/publications/{any}"),
        ("POST", "/v1/publications/{any}/retry"),
        ("POST", "/v1/credentials"),
        ("GET", "/v1/credentials"),
        ("DELETE", "/v1/credentials/{any}"),
        ("POST", "/v1/webhooks"),
        ("GET", "/v1/webhooks"),
        *((method, "/v1/webhooks/{any}") for method in ("GET", "PATCH", "DELETE")),
        *(("POST", "/v1/webhooks/{any}" + tail) for tail in ("/rotate", "/test", "/deliveries/{any}/redeliver")),
        *(("GET", "/v1/webhooks/{any}/deliveries" + tail) for tail in ("", "/{any}")),
        ("GET", "/v1/artifacts/{artifact}/content"),
        ("HEAD", "/v1/artifacts/{artifact}/content"),
        ("GET", "/v1/artifacts/{any}/content"),
        *(("GET", "/v1/jobs/{job}" + tail) for tail in _JOB_ROUTES),
        *(("GET", "/v1/jobs/{any}" + tail) for tail in _JOB_ROUTES),
        *(("GET", path) for path in _PLAIN_ROUTES),
        ("PUT", "/v1/jobs"),
        ("OPTIONS", "/v1/jobs/{job}"),
    ]
)
_requests = st.builds(
    lambda route, **rest: Sent(*route, **rest),
    _routes,
    segment=_segments,
    query=_queries,
    headers=_headers,
    body=_bodies,
)

Exchange = Callable[[Sent], tuple[http.client.HTTPResponse, bytes]]


@pytest.fixture
def send(url: str, client: httpx.Client, finished: str) -> Exchange:
    """Sends a request to an API that has one finished job."""
    artifact = client.get(f"/v1/jobs/{finished}/artifacts").json()["data"][0]["id"]
    address = urlsplit(url)

    def send(sent: Sent) -> tuple[http.client.HTTPResponse, bytes]:
        path = sent.path.format(job=finished, artifact=artifact, any=sent.segment)
        has_body = sent.method in ("POST", "PUT", "PATCH")
        headers = {**({"Content-Type": "application/json"} if has_body else {}), **sent.headers, "Host": address.netloc}
        if has_body:
            headers["Content-Length"] = str(len(sent.body))
        target = f"{path}?{sent.query}" if sent.query else path
        lines = [f"{sent.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            connection.sendall("\r\n".join(lines).encode("latin-1") + (sent.body if has_body else b""))
            response = http.client.HTTPResponse(connection, method=sent.method)
            response.begin()
            return response, response.read()

    return send


@example(Sent("POST", "/v1/jobs", "", "", {}, _encoded(_FULL_BODY)))
@example(Sent("POST", "/v1/credentials", "", "", {}, _encoded({**_CREDENTIAL, "kind": f"hf_{_MARK}"})))
@example(Sent("POST", "/v1/jobs/{any}/cancel", "%00", "", {"Idempotency-Key": "k"}, b""))
@given(_requests)
@settings(
    max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_request_breaks_the_service(send: Exchange, sent: Sent) -> None:
    response, body = send(sent)
    event(f"status {response.status}")
    assert response.status < 500, body
    assert response.headers["X-Request-ID"]
    if response.status < 400 or sent.method == "HEAD":
        return
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = json.loads(body)
    assert problem["status"] == response.status
    assert problem["request_id"] == response.headers["X-Request-ID"]
    assert len(problem["detail"]) > 20
    if _MARK not in sent.headers.get("X-Request-ID", ""):
        assert _MARK not in body.decode()
        assert _MARK not in str(response.headers)
