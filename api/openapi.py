"""The OpenAPI document: FastAPI's, plus the bodies that endpoints parse themselves and one error response."""

import json
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.problems import MEDIA_TYPE, ProblemDocument
from api.schemas import (
    COMPONENT,
    Schema,
    complete,
    hoist,
    leave_out_defaults,
    reachable,
    references,
    require_everything,
)

_TEMPLATE: Final = COMPONENT + "{model}"
_bodies: Final[list[type[BaseModel]]] = []
"""The models whose schemas are added to the document. Endpoints add their bodies when they are declared."""

PROBLEM_RESPONSE: Final[dict[int | str, dict[str, Any]]] = {
    "default": {
        "description": "A problem (RFC 9457): what is wrong, and what to do about it.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": _TEMPLATE.format(model="Problem")}}},
    }
}

DESCRIPTION: Final = """Quantization as a service: submit a model and a policy, watch it, download a proven checkpoint.

What a request leaves out is the preset's, or the service's. Null for a field that can not be null means the same, and
then so does every other null of that object: some generated clients write null for what was left out."""

TAGS: Final = [
    {"name": "jobs", "description": "Submit, list, read, cancel, retry and delete jobs."},
    {"name": "events", "description": "What happened to a job, as pages or as a live stream."},
    {"name": "layers", "description": "The error of each quantized linear."},
    {"name": "report", "description": "The whole evaluation of a finished job."},
    {"name": "artifacts", "description": "The files of a finished job."},
    {"name": "publications", "description": "Push a checkpoint to the Hub."},
    {"name": "presets", "description": "Named policies to start from."},
    {"name": "capabilities", "description": "What this installation can do."},
    {"name": "credentials", "description": "Hub tokens, which are written and never read."},
    {"name": "webhooks", "description": "Where events are sent, and the result of each message."},
    {"name": "health", "description": "Whether the service works."},
]


def operation_id(route: APIRoute) -> str:
    """Return the name that generated clients give to an operation: that of its function."""
    return route.name


def json_body_of(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Return the ``openapi_extra`` of an endpoint that parses its body as a ``model``, and register its schema."""
    if model not in _bodies:
        _bodies.append(model)
    schema = {"$ref": _TEMPLATE.format(model=model.__name__)}
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
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    hoist(document.setdefault("components", {}).setdefault("schemas", {}))
    requests = _request_schemas()
    document = _with_names_of_responses(document, requests)
    schemas: dict[str, Schema] = document["components"]["schemas"]
    require_everything(schemas)
    problem = ProblemDocument.model_json_schema(ref_template=_TEMPLATE)
    problem["properties"]["errors"].pop("default")  # absent, not null, where no field is wrong
    schemas.update(problem.pop("$defs", {}) | {"Problem": problem} | requests)
    used = reachable(schemas, *references(document["paths"]))
    document["components"]["schemas"] = {name: schema for name, schema in schemas.items() if name in used}
    complete(document["components"]["schemas"])
    return document


def _request_schemas() -> dict[str, Schema]:
    _, found = models_json_schema([(model, "validation") for model in _bodies], ref_template=_TEMPLATE)
    schemas: dict[str, Schema] = found["$defs"]
    leave_out_defaults(schemas, governed=reachable(schemas, "Policy"))
    return schemas


def _with_names_of_responses(document: dict[str, Any], requests: dict[str, Schema]) -> dict[str, Any]:
    """Rename objects that both requests and responses have: in a response, all fields are there."""
    text = json.dumps(document)
    for name, schema in document["components"]["schemas"].items():
        if name in requests and "properties" in schema:
            text = text.replace(f'"{COMPONENT}{name}"', f'"{COMPONENT}Resolved{name}"')
    renamed: dict[str, Any] = json.loads(text)
    schemas = renamed["components"]["schemas"]
    for name in list(schemas):
        if name in requests and "properties" in schemas[name]:
            schemas[f"Resolved{name}"] = schemas.pop(name) | {"title": f"Resolved{name}"}
    return renamed
