"""The middleware that refuses a request before anything reads it."""

from dataclasses import dataclass
from typing import Final, Self

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.doors.hosts import HostRule, host_of, is_address
from api.doors.origins import OriginRule
from api.errors import ForeignOrigin, HeadersTooLarge, MisdirectedRequest, TargetTooLong
from api.problems import as_problem
from jobs.kit.errors import QuantryError
from jobs.settings import Settings

MAX_TARGET_BYTES: Final = 16_384
MAX_HEADERS: Final = 100
MAX_HEADER_BYTES: Final = 32_768

_HARMLESS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# Orchestrators call these by the address of a container, and give that address as the host.
_HEALTH_CHECKS: Final = frozenset({"/healthz", "/readyz"})
_METHODS_OF_PAGES: Final = ("GET", "HEAD", "POST", "PATCH", "DELETE")
_SENT_BY_PAGES: Final = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Range", "X-Request-ID"),
)
_SHOWN_TO_PAGES: Final = (
    *("Content-Disposition", "Content-Range", "ETag", "Location", "Retry-After", "WWW-Authenticate", "X-Request-ID"),
)


@dataclass(frozen=True, kw_only=True)
class DoorRules:
    """What the operator allows."""

    hosts: HostRule
    origins: OriginRule

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the rules of an installation."""
        return cls(hosts=HostRule.of(settings), origins=OriginRule.of(settings))


_BEFORE_THE_START: Final = DoorRules(hosts=HostRule(), origins=OriginRule())


class Doors:
    """Middleware of every request. It limits the target and the headers, and checks the host and the origin.

    Browsers are answered by the rules of CORS, but only for pages of QUANTRY_ALLOWED_ORIGINS.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = getattr(scope["app"].state, "quantry", None)
        rules: DoorRules = _BEFORE_THE_START if state is None else state.door_rules
        try:
            _check_size(scope)
            _check_sender(scope, rules)
        except QuantryError as error:
            await as_problem(error).response(Request(scope))(scope, receive, send)
            return
        await self._for_pages(rules.origins)(scope, receive, send)

    def _for_pages(self, rule: OriginRule) -> ASGIApp:
        if not rule.origins:
            return self._app
        return CORSMiddleware(
            self._app,
            allow_origins=sorted(rule.origins),
            allow_methods=_METHODS_OF_PAGES,
            allow_headers=_SENT_BY_PAGES,
            expose_headers=_SHOWN_TO_PAGES,
        )


def _check_size(scope: Scope) -> None:
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET_BYTES:
        raise TargetTooLong(MAX_TARGET_BYTES)
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise HeadersTooLarge(MAX_HEADERS, MAX_HEADER_BYTES)


def _check_sender(scope: Scope, rules: DoorRules) -> None:
    headers = Headers(scope=scope)
    host = host_of(headers.getlist("host"))
    if host is None:
        raise MisdirectedRequest
    probe = scope["path"] in _HEALTH_CHECKS and is_address(host.host)
    if not probe and not rules.hosts.allows(host.host):
        raise MisdirectedRequest
    if scope["method"] not in _HARMLESS and not rules.origins.allows(headers, host):
        raise ForeignOrigin
