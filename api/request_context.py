"""The context of every request: its id, log event, metrics and span, and the headers of every response."""

import re
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import Metrics
from jobs.observability.tracing import NoTracing, Span, Tracing

_HEADER: Final = "X-Request-ID"
_TRACEPARENT: Final = "traceparent"
# Health checks and scrapes come every few seconds and would fill the traces.
_UNTRACED: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_ACCEPTABLE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_STATE_KEY: Final = "request_id"
_SPAN_KEY: Final = "span"

_OFF: Final = NoTracing()

log = structlog.get_logger(__name__)


def request_id(scope: Scope) -> str:
    """Return the id of the request, as :class:`RequestContext` set it."""
    return str(scope.get("state", {}).get(_STATE_KEY, "unknown"))


def traceparent(scope: Scope) -> str | None:
    """Return the parent span for the request's work in other processes: this server's span, or else the client's."""
    span: Span | None = scope.get("state", {}).get(_SPAN_KEY)
    return None if span is None else span.traceparent


def request_headers(scope: Scope) -> dict[str, str]:
    """Return the headers that every response has."""
    return {_HEADER: request_id(scope), "X-Content-Type-Options": "nosniff"}


class RequestContext:
    """Middleware of every request: it chooses the id, counts, times, logs and traces the request, and answers bugs.

    Query strings, headers and bodies are neither logged nor traced, because they may contain secrets.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, on_bug: Callable[[Request], Response]) -> None:
        self._app = app
        self._metrics = metrics
        self._on_bug = on_bug

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identifier = _chosen_id(Headers(scope=scope).getlist(_HEADER))
        scope.setdefault("state", {})[_STATE_KEY] = identifier
        # Fields that an earlier request left in the same context must not stay.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=identifier)
        status = 0  # until the response starts

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(request_headers(scope))
            await send(message)

        span = scope["state"][_SPAN_KEY] = _begin_span(scope, identifier)
        self._metrics.begin()
        began = time.perf_counter()
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            log.info("client_disconnected")
        except Exception:
            if status:  # the response has begun, so no other is possible; the server closes the connection and logs
                raise
            log.exception("request_crashed")
            await self._on_bug(Request(scope))(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - began)
            _end_span(span, scope, status)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = route_template(scope)
        self._metrics.observe(method=scope["method"], route=route, status=status, seconds=seconds)
        log.info(
            "request_ended",
            # A client can send any word as a method, so its length is limited.
            method=scope["method"][:16],
            route=route,
            status=status,
            milliseconds=round(seconds * 1e3, 1),
        )


def _begin_span(scope: Scope, identifier: str) -> Span:
    state = getattr(scope["app"].state, "quantry", None)
    tracing: Tracing = _OFF if state is None or scope["path"] in _UNTRACED else state.tracing
    offered = Headers(scope=scope).getlist(_TRACEPARENT)
    return tracing.span(
        scope["method"][:16],
        kind="server",
        # Several headers contradict each other, so none of them is used.
        parent=offered[0] if len(offered) == 1 else None,
        attributes={"http.request.method": scope["method"][:16], "quantry.request.id": identifier},
    )


def _end_span(span: Span, scope: Scope, status: int) -> None:
    route = route_template(scope)
    # The route is known only after the request was routed.
    span.rename(f"{scope['method'][:16]} {route}")
    span.set({"http.route": route, "http.response.status_code": status})
    if status >= 500:
        span.fail(str(status))
    span.end()


def route_template(scope: Scope) -> str:
    """Return the path pattern that matched, such as ``/v1/jobs/{job_id}``: bounded in number, unlike the paths."""
    route: Any = scope.get("route")
    return str(getattr(route, "path", "unmatched"))


def _chosen_id(offered: Iterable[str]) -> str:
    """Return the client's id if it sent exactly one that is safe to log and to repeat, else a new one."""
    match list(offered):
        case [identifier] if _ACCEPTABLE_ID.fullmatch(identifier):
            return identifier
    return uuid.uuid4().hex
