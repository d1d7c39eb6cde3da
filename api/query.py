"""Checks of query parameters: each is declared and given once. The OpenAPI entry of a route declares them."""

import re
from collections.abc import Iterator
from typing import Any, Final

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import Request

from api.errors import InvalidFields
from api.field_names import looks_like_field_name
from jobs.kit.errors import FieldError
from quant_engine.policy.nearest import did_you_mean

_MEMBER: Final = re.compile(r"([a-z_]+)\[[^\[\]]+\]", re.ASCII)


async def declared_only(request: Request) -> None:
    """Check the query parameters of a request. This is a dependency of every route.

    Raises:
        InvalidFields: a parameter that the route does not declare, or a single-valued one given more than once.
    """
    route: APIRoute = request.scope["route"]
    plain, objects = frozenset(_plain(route.dependant)), frozenset(_deep_objects(route))
    seen: set[str] = set()
    errors: list[FieldError] = []
    for name, _ in request.query_params.multi_items():
        member = _MEMBER.fullmatch(name)
        if name not in plain and not (member and member.group(1) in objects):
            errors.append(_unknown(name, plain | {f"{name}[…]" for name in objects}))
        # FastAPI would silently use the last value.
        elif name in seen:
            errors.append(FieldError(f"?{_safe_name(name)}", "given_twice", "Give this parameter once."))
        seen.add(name)
    if errors:
        # A query string can name thousands of parameters, so the list is limited.
        raise InvalidFields(tuple(errors[:50]))


def object_members(request: Request, name: str) -> dict[str, str]:
    """Return the members of a ``deepObject`` parameter: ``metadata[team]=search`` gives ``{"team": "search"}``."""
    prefix = f"{name}["
    return {
        key.removeprefix(prefix).removesuffix("]"): value
        for key, value in request.query_params.multi_items()
        if key.startswith(prefix)
    }


def _plain(dependant: Dependant) -> Iterator[str]:
    for field in dependant.query_params:
        yield field.alias
    for below in dependant.dependencies:
        yield from _plain(below)


def _deep_objects(route: APIRoute) -> Iterator[str]:
    parameters: list[dict[str, Any]] = (route.openapi_extra or {}).get("parameters", [])
    for parameter in parameters:
        if parameter.get("style") == "deepObject":
            yield str(parameter["name"])


def _unknown(name: str, known: frozenset[str]) -> FieldError:
    takes = f"This path takes: {', '.join(sorted(known))}." if known else "This path takes no query parameters."
    did_you = did_you_mean(name, sorted(known))
    return FieldError(f"?{_safe_name(name)}", "unknown_parameter", f"There is no such parameter.{did_you} {takes}")


def _safe_name(name: str) -> str:
    return name if looks_like_field_name(name) else ""
