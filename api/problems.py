"""Every error as ``application/problem+json`` (RFC 9457): errors of the service, FastAPI and the router, and bugs."""

import http
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from api.errors import InvalidFields
from api.fields import parameter_errors
from api.request_context import request_headers, request_id
from jobs.kit.errors import FieldError, QuantryError, problem_type

MEDIA_TYPE: Final = "application/problem+json"


class FieldProblem(BaseModel):
    """One wrong field."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    pointer: Annotated[str, Field(examples=["/policy/preset"])]
    """A JSON pointer into the body, or ``?name`` for a parameter."""
    code: Annotated[str, Field(examples=["unknown_preset"])]
    """The code of the mistake, for programs."""
    detail: Annotated[str, Field(examples=["There is no preset of this name."])]
    """What is wrong, and what to do about it."""


class ProblemDocument(BaseModel):
    """The body of every error response."""

    model_config = ConfigDict(title="Problem", extra="allow", use_attribute_docstrings=True)

    type: Annotated[str, Field(examples=["urn:quantry:problem:invalid_request"])]
    """The name of the problem."""
    title: Annotated[str, Field(examples=["Invalid request"])]
    """The problem in a few words."""
    status: Annotated[int, Field(examples=[422])]
    """The HTTP status."""
    detail: Annotated[str, Field(examples=["1 field does not fit."])]
    """What is wrong, and what to do about it."""
    instance: Annotated[str, Field(examples=["urn:quantry:request:req_01"])]
    """The request."""
    code: Annotated[str, Field(examples=["invalid_request"])]
    """The code of the problem, for programs."""
    request_id: Annotated[str, Field(examples=["req_01"])]
    """The id of the request, for the operator."""
    errors: list[FieldProblem] | None = None
    """The wrong fields."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The members of a problem document that do not depend on the request."""

    status: int
    code: str
    title: str
    detail: str
    errors: tuple[FieldError, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    extensions: Mapping[str, object] = field(default_factory=dict)

    def response(self, request: Request) -> Response:
        """Return the document for this request. ``instance`` contains the same id as the header ``X-Request-ID``."""
        identifier = request_id(request.scope)
        members: dict[str, Any] = {
            "type": problem_type(self.code),
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": f"urn:quantry:request:{identifier}",
            "code": self.code,
            "request_id": identifier,
            **self.extensions,
        }
        if self.errors:
            members["errors"] = [asdict(error) for error in self.errors]
        headers = {**request_headers(request.scope), "Cache-Control": "no-store", **self.headers}
        return JSONResponse(members, self.status, headers, media_type=MEDIA_TYPE)


_UNEXPECTED: Final = Problem(
    status=500,
    code="internal_error",
    title="Internal error",
    detail="An unexpected error happened. Repeat the request; if it fails again, give the operator the request_id.",
)
_FROM_THE_ROUTER: Final[dict[int, tuple[str, str]]] = {
    404: ("route_not_found", "There is nothing at this path. GET /openapi.json lists what there is."),
    405: ("method_not_allowed", "This path does not take this method. The Allow header lists the ones it takes."),
}


def install(app: FastAPI) -> None:
    """Answer every expected error of ``app`` with a problem."""
    for kind in (QuantryError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer)


def for_a_bug(request: Request) -> Response:
    """Return the answer to an unexpected error. It has only the request's id; the error's text is only logged."""
    return _UNEXPECTED.response(request)


async def _answer(request: Request, error: Exception) -> Response:
    return as_problem(error).response(request)


def as_problem(error: Exception) -> Problem:
    """Return the problem that describes ``error``."""
    match error:
        case QuantryError():
            return _from_service(error)
        case RequestValidationError():
            return _from_service(InvalidFields(parameter_errors(error.errors())))
        case HTTPException():
            return _from_framework(error)
        case _:
            return _UNEXPECTED


def _from_service(error: QuantryError) -> Problem:
    return Problem(
        status=error.status,
        code=error.code,
        title=error.title,
        detail=f"{error.detail} {error.hint}" if error.hint else error.detail,
        errors=error.errors,
        headers=error.headers,
    )


def _from_framework(error: HTTPException) -> Problem:
    title = http.HTTPStatus(error.status_code).phrase
    code, detail = _FROM_THE_ROUTER.get(
        error.status_code,
        (title.lower().replace(" ", "_"), "The request can not be answered. GET /openapi.json shows what is expected."),
    )
    return Problem(
        status=error.status_code, code=code, title=title.capitalize(), detail=detail, headers=error.headers or {}
    )
