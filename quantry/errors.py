"""The one exception of the client: a problem that the service reported, or the reason why no answer came.

Besides the codes of the service, the client has codes of its own: ``unreachable``, ``connection_lost``, ``timeout``,
``bad_response``, ``bad_input``, ``digest_mismatch``, ``unsafe_path``; the command also has ``start_failed``,
``extras_missing``, ``sample_failed`` and ``os_error``.
"""

from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """One wrong field of a request: ``pointer`` is a JSON pointer into the body, or ``?name`` for a parameter."""

    pointer: str
    code: str
    detail: str


class QuantryError(Exception):
    """A failed call: ``code`` is stable, ``detail`` describes the failure, ``errors`` the wrong fields of a request.

    ``status`` is the HTTP status, or None if no response arrived. ``hint`` is a remedy, or None.
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
        # A traceback shows the message alone.
        fields = [f"{each.pointer}: {each.detail}" for each in errors if each.detail not in detail]
        super().__init__(" ".join([f"{code}: {detail}", *fields]))
        self.code = code
        self.detail = detail
        self.errors = errors
        self.status = status
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle and copy by all of the fields. Exception itself would repeat the one argument of its message."""
        return _remade, (self.code, self.detail, self.errors, self.status, self.hint)


def _remade(
    code: str, detail: str, errors: tuple[FieldError, ...], status: int | None, hint: str | None
) -> QuantryError:
    return QuantryError(code, detail, errors, status=status, hint=hint)


def error_from_problem(problem: dict[str, Any], *, status: int | None = None) -> QuantryError:
    """Make an exception from a problem object (RFC 9457, or a failed job's ``error``)."""
    return QuantryError(
        str(problem.get("code") or f"http_{status}"),
        str(problem.get("detail") or problem.get("title") or "The service gave no reason."),
        tuple(_field_error(each) for each in problem.get("errors") or () if isinstance(each, dict)),
        status=status,
        hint=problem.get("hint"),
    )


def error_from_response(response: httpx.Response) -> QuantryError:
    """Make an exception from a response. An answer that is no problem, such as a proxy's page, is ``http_<status>``."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if isinstance(problem, dict):
        return error_from_problem(problem, status=response.status_code)
    return QuantryError(
        f"http_{response.status_code}",
        f"{response.request.method} {response.request.url.path} answered {response.status_code} "
        f"{response.reason_phrase}, which is not an answer of Quantry.",
        status=response.status_code,
        hint="Check that the URL is the Quantry service's, without a path.",
    )


def _field_error(error: dict[str, Any]) -> FieldError:
    return FieldError(
        pointer=str(error.get("pointer", "")), code=str(error.get("code", "")), detail=str(error.get("detail", ""))
    )
