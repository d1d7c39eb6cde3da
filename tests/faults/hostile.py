"""Hostile requests: to every route of an OpenAPI document, with a token that no answer may repeat.

Routes, parameters and bodies are read from the document, so a new route is tested as soon as it exists.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote_from_bytes

from hypothesis import strategies as st

MARK: Final = "zqSentinel"
"""Whatever is sent has it in it; no error may."""

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_NUMBERS: Final = (
    *("1e400", "-1e400", "NaN", "-Infinity", "1" * 400, "-0.0", "1e-400"),
    *(str(number) for number in (2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**31), -(2**63) - 1, -(2**70))),
)
_RAW: Final = "@raw@"  # marks a JSON string that becomes the bare number behind the mark

_JOB: Final[dict[str, Any]] = {
    "model": {"source": "local", "id": "succeed", "revision": "main", "credential": None},
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
_GOOD: Final[Mapping[str, dict[str, Any]]] = {
    "JobRequest": _JOB,
    "NewCredential": {"name": "mine", "kind": "hub", "token": f"hf_{MARK}"},
    "HubTarget": {"repo": "me/tiny", "private": True, "revision": "main", "credential": None},
    "NewWebhook": {"url": f"https://example.com/{MARK}", "events": ["job.failed"], "description": "mine"},
}
"""Bodies that pass, by schema: a schema that is not here gets what :func:`_example` makes of it."""

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Route:
    """One operation. ``query`` has the names of its parameters, ``body`` is a valid body."""

    method: str
    path: str
    query: tuple[str, ...] = ()
    body: Any = None


@dataclass(frozen=True, repr=False)
class Sent:
    """One request. ``{name}`` in the path is a real id if ``real`` has the name, else ``segment``."""

    route: Route
    segment: str
    real: bool
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def has_body(self) -> bool:
        """Whether the body is sent."""
        return self.route.method in _WITH_BODY

    def target(self, ids: Mapping[str, str]) -> str:
        """Return the request target, with ``ids`` by the names of path parameters."""
        path = self.route.path
        while "{" in path:
            name = path[path.index("{") + 1 : path.index("}")]
            path = path.replace(f"{{{name}}}", ids.get(name, self.segment) if self.real else self.segment)
        return f"{path}?{self.query}" if self.query else path

    def __repr__(self) -> str:
        """Return a short form for reports."""
        body = f"{self.body[:500]!r} of {len(self.body)} bytes" if self.has_body else "no body"
        where = f"{self.segment[:200]} real={self.real} ?{self.query[:500]}"
        return f"<{self.route.method} {self.route.path} {where} {self.headers} {body}>"


def routes_of(document: Mapping[str, Any]) -> tuple[Route, ...]:
    """Return every operation of the document, and HEAD for those that allow GET."""
    found = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            query = tuple(each["name"] for each in operation.get("parameters", ()) if each["in"] == "query")
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            body = _body(content["schema"], document) if content else None
            found.append(Route(method.upper(), path, query, body))
    return tuple(found)


def requests_of(document: Mapping[str, Any]) -> st.SearchStrategy[Sent]:
    """Return a strategy of requests to all routes of the document, and to unknown ones."""
    routes = routes_of(document)
    astray = [Route(method, path) for path in document["paths"] for method in _METHODS]
    nowhere = [Route(method, path) for path in ("/", "/v1", "/docs", "/openapi.json", "/{any}") for method in _METHODS]
    # What takes a body has the most places to go wrong.
    loaded = [route for route in routes if route.body is not None]
    chosen = st.one_of(
        st.sampled_from(loaded), st.sampled_from(loaded), st.sampled_from(routes), st.sampled_from(astray + nowhere)
    )
    return chosen.flatmap(_request)


def _request(route: Route) -> st.SearchStrategy[Sent]:
    return st.builds(
        Sent,
        st.just(route),
        segment=_segments,
        real=st.booleans(),
        query=_query(route),
        headers=_headers,
        body=_bodies(route.body),
    )


def whole(route: Route) -> Sent:
    """Return a valid request of the route."""
    return Sent(route, MARK, True, "", {}, _encoded(route.body))


def _body(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Any:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    return _GOOD.get(name) or _example(schema, document)


def _example(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Any:
    """Return a value that is valid or nearly so."""
    if "$ref" in schema:
        return _example(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return _example(schema[choice][0], document)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    made: dict[str, Any] = {
        "object": lambda: {key: _example(value, document) for key, value in schema.get("properties", {}).items()},
        "array": lambda: [_example(schema.get("items", {}), document)],
        "string": lambda: MARK,
        "integer": lambda: schema.get("minimum", 1),
        "number": lambda: schema.get("minimum", 0.5),
        "boolean": lambda: True,
    }
    return made.get(schema.get("type", ""), lambda: None)()


_text = st.one_of(
    st.just(MARK),
    st.text(max_size=20).map(MARK.__add__),
    st.sampled_from(["", "\x00", "\ud800", MARK + "\x00", MARK + "\udfff", "a" * 300 + MARK, "../" + MARK]),
    st.sampled_from(["re:(" + MARK, "re:(?P<" + MARK, "re:a{9999999999}", "re:" + "(" * 200]),
    st.sampled_from(
        [f"http://127.0.0.1/{MARK}", f"https://[::1]/{MARK}", f"https://2130706433/{MARK}", "https://" + "a" * 300]
    ),
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
_malformed = st.one_of(
    st.binary(max_size=60).map(MARK.encode().__add__),
    st.sampled_from([b"", b"{}", b"null", b'{"a":1,"a":2}', b"\xff\xfe{}"]),
    st.sampled_from([b"[" * 50_000, b'{"a":' * 20_000, b'{"a":' + b"1" * 5000 + b"}", b'"' + b"x" * 200_000 + b'"']),
)


def _bodies(good: Any) -> st.SearchStrategy[bytes]:
    """Return a strategy of ``good`` with one wrong value, with one field too many, or without any field."""
    whole = {} if good is None else good
    places = st.sampled_from(list(_paths(whole)))
    return st.one_of(
        st.just(_encoded(whole)),
        st.builds(_replaced, st.just(whole), places, _json).map(_encoded),
        st.builds(_replaced, st.just(whole), places, _json).map(_encoded),
        st.builds(_extended, st.just(whole), places, _text, _json).map(_encoded),
        _json.map(_encoded),
        _malformed,
    )


def _paths(value: object, here: Path = ()) -> Iterator[Path]:
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*here, key))


def _at(body: Any, path: Path) -> Any:
    for step in path:
        body = body[step]
    return body


def _replaced(whole: Any, path: Path, value: object) -> object:
    if not path:
        return value
    body = copy.deepcopy(whole)
    _at(body, path[:-1])[path[-1]] = value
    return body


def _extended(whole: Any, path: Path, key: str, value: object) -> object:
    body = copy.deepcopy(whole)
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


_segments = st.one_of(
    st.sampled_from([b"job_" + b"0" * 24, b"art_" + b"0" * 24, b"\x00", b"\xff\xfe", b"..", b"a/b", b"%", b"x" * 3000]),
    st.binary(min_size=1, max_size=12).map(MARK.encode().__add__),
).map(lambda raw: quote_from_bytes(raw, safe=""))

_parameter_values = st.one_of(
    st.sampled_from(["0", "1", "-1", "1e400", "NaN", str(2**31), str(2**63), str(2**70), "9" * 5000, "", "-error"]),
    st.sampled_from(["succeeded", "eyJ9", "bnVsbA==", f"WzFd{MARK}", "MjAyNi0wMS0wMVQwMDowMDowMFp8am9iXzA="]),
    _text,
)


def _query(route: Route) -> st.SearchStrategy[str]:
    own = [st.sampled_from(route.query)] if route.query else []
    names = st.one_of(*own, *own, st.sampled_from(["limit", "metadata[team]", "metadata[]", "metadata[\x00]"]), _text)
    pairs = st.lists(st.tuples(names, _parameter_values), max_size=3)
    joined = pairs.map(lambda made: "&".join(f"{_quoted(name, safe='[]')}={_quoted(value)}" for name, value in made))
    return st.one_of(st.just(""), st.just(""), joined)


_latin = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)
_header_values = st.one_of(
    st.sampled_from(["", "*", "*/*", "application/json", "text/event-stream", "text/csv", "text/plain", ";q=;,,"]),
    st.sampled_from(["bytes=0-5", "bytes=-0", "bytes=9999999999999-", "bytes=5-1,,", 'W/"1"', '"' * 500]),
    st.sampled_from(["1e400", str(2**31), str(2**70), "-1", "Bearer x", "a" * 256, "00-" + "0" * 32 + "-0-0"]),
    _latin.map(MARK.__add__),
)
_header_names = st.sampled_from(
    [
        *("Accept", "Content-Type", "Range", "If-Range", "If-None-Match", "Last-Event-ID", "traceparent"),
        *("Idempotency-Key", "X-Request-ID", "Authorization", "Cookie", "Accept-Encoding"),
    ]
)
_headers = st.just({}) | st.dictionaries(_header_names, _header_values, max_size=3)
