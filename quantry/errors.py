"""The one exception of the client: a problem response, or the reason why there was none.

Codes of its own, beside the service's: ``unreachable``, ``connection_lost``, ``timeout``, ``bad_response``,
``bad_input``, ``digest_mismatch``, ``unsafe_path``, ``start_failed``.
"""

from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """One wrong place of a request: ``pointer`` is a JSON pointer into the body, or ``?name`` for a parameter."""

    pointer: str
    code: str
    detail: str


class QuantryError(Exception):
    """What went wrong (``detail``), under a stable ``code``; ``errors`` names the wrong fields of a request.

    ``status`` is the HTTP status, or None when no response arrived; ``hint`` is a remedy where there is one.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        errors: tuple[FieldError, ...] = (),
        *,
        status: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.errors = errors
        self.status = status
        self.hint = hint


def error_from_problem(problem: dict[str, Any], *, status: int | None = None) -> QuantryError:
    """A problem object (RFC 9457, or a failed job's ``error``) as an exception."""
    return QuantryError(
        str(problem.get("code") or f"http_{status}"),
        str(problem.get("detail") or problem.get("title") or "The service gave no reason."),
        tuple(_field_error(each) for each in problem.get("errors") or () if isinstance(each, dict)),
        status=status,
        hint=problem.get("hint"),
    )


def error_from_response(response: httpx.Response) -> QuantryError:
    """The response's problem; an answer of another kind, such as a proxy's page, becomes ``http_<status>``."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if isinstance(problem, dict):
        return error_from_problem(problem, status=response.status_code)
    return QuantryError(
        f"http_{response.status_code}",
        f"{response.request.method} {response.request.url.path} answered {response.status_code} "
        f"{response.reason_phrase}, and not as Quantry does.",
        status=response.status_code,
        hint="Check that the URL is the Quantry service's, without a path.",
    )


def _field_error(error: dict[str, Any]) -> FieldError:
    return FieldError(
        pointer=str(error.get("pointer", "")), code=str(error.get("code", "")), detail=str(error.get("detail", ""))
    )
