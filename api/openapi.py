"""The OpenAPI document: FastAPI's, plus the bodies that endpoints parse themselves and one error response."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from api.problems import MEDIA_TYPE, ProblemDocument

_COMPONENTS: Final = "#/components/schemas/{model}"
_bodies: Final[list[type[BaseModel]]] = [ProblemDocument]
"""The models whose schemas are added to the document. Endpoints add their bodies when they are declared."""

PROBLEM_RESPONSE: Final[dict[int | str, dict[str, Any]]] = {
    "default": {
        "description": "A problem (RFC 9457): what is wrong, and what to do about it.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": _COMPONENTS.format(model="Problem")}}},
    }
}


def json_body_of(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Return the ``openapi_extra`` of an endpoint that parses its body as a ``model``, and register its schema."""
    if model not in _bodies:
        _bodies.append(model)
    schema = {"$ref": _COMPONENTS.format(model=model.__name__)}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def install(app: FastAPI) -> None:
    """Serve the completed document at ``app.openapi_url``."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    # FastAPI's documented way to extend the document is to replace this method.
    setattr(app, "openapi", document)  # noqa: B010 - mypy refuses to assign to a method


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    for model in _bodies:
        schema = model.model_json_schema(ref_template=_COMPONENTS)
        # Nested models become components of their own, where ``ref_template`` points.
        schemas.update(schema.pop("$defs", {}))
        schemas[schema["title"]] = schema
    return document
