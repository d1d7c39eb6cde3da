"""Rules for the schemas of the OpenAPI document, as functions on JSON: what requests may leave out, and examples.

Generated clients send every default that a schema has. So a request schema has none: what a caller leaves out is left
out, and the service or the preset decides. Response schemas list every field as required.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

Schema = dict[str, Any]

COMPONENT: Final = "#/components/schemas/"
_MOMENT: Final = "2026-01-31T12:00:00.000Z"
_BRANCHES: Final = ("anyOf", "oneOf", "allOf")
_DEEPEST: Final = 8


def hoist(schemas: dict[str, Schema]) -> None:
    """Make every titled object inside another one a component of its own."""
    for name in list(schemas):
        for holder, key in list(_places(schemas[name])):
            inner = holder[key]
            if isinstance(inner, dict) and "title" in inner and inner.get("type") == "object" and "properties" in inner:
                target = str(inner["title"])
                schemas.setdefault(target, inner)
                holder[key] = {"$ref": COMPONENT + target}


def references(schema: Any) -> Iterator[str]:
    """Yield the names of the components that a schema refers to."""
    if isinstance(schema, dict):
        if str(schema.get("$ref", "")).startswith(COMPONENT):
            yield schema["$ref"].removeprefix(COMPONENT)
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def reachable(schemas: dict[str, Schema], *starts: str) -> set[str]:
    """Return ``starts`` and the names of all components that they refer to, directly or not."""
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name not in found and name in schemas:
            found.add(name)
            waiting += references(schemas[name])
    return found


def leave_out_defaults(schemas: dict[str, Schema], governed: set[str]) -> None:
    """Remove the defaults of request schemas; the text of a field tells its own, unless a preset governs it.

    Two fields become required, so that a generated client does not leave them to chance: the ``kind`` of an object that
    has kinds, and a field whose null means something else than its absence.
    """
    for name, schema in schemas.items():
        for field, members in schema.get("properties", {}).items():
            default = members.pop("default", None)
            null_is_not_absence = default is not None and _takes_null(members) and name not in governed
            if null_is_not_absence or (field == "kind" and "const" in members):
                schema["required"] = sorted({*schema.get("required", []), field})
            if default is not None:
                members.setdefault("examples", [default])
            if default is not None and name not in governed and not isinstance(default, dict | list):
                members["description"] = f"{members.get('description', '')} Left out: {json.dumps(default)}.".strip()


def require_everything(schemas: dict[str, Schema]) -> None:
    """Say of response schemas that every field is there, also one that has a default."""
    for schema in schemas.values():
        properties = schema.get("properties", {})
        for members in properties.values():
            default = members.pop("default", None)
            if default is not None:
                members.setdefault("examples", [default])
        if properties:
            schema["required"] = list(properties)


def complete(schemas: dict[str, Schema]) -> None:
    """Give every property a description and an example, from the schema of its value where it has none of its own."""
    for schema in schemas.values():
        for members in schema.get("properties", {}).values():
            target = next(references(members), None)
            if "description" not in members and target in schemas and "description" in schemas[target]:
                members["description"] = schemas[target]["description"].split("\n\n")[0]
            if "examples" not in members:
                members["examples"] = [example_of(members, schemas)]


def example_of(schema: Schema, schemas: dict[str, Schema], depth: int = 0) -> Any:
    """Return a value that fits the schema, made of the examples inside it; None where there are none."""
    for key, pick in (("examples", 0), ("enum", 0)):
        if schema.get(key):
            return schema[key][pick]
    for key in ("default", "const"):
        if schema.get(key) is not None:
            return schema[key]
    if "$ref" in schema and depth < _DEEPEST:
        return example_of(schemas[schema["$ref"].removeprefix(COMPONENT)], schemas, depth + 1)
    for key in _BRANCHES:
        for branch in schema.get(key, ()):
            if branch.get("type") != "null":
                return example_of(branch, schemas, depth + 1)
    return _example_of_type(schema, schemas, depth)


def _example_of_type(schema: Schema, schemas: dict[str, Schema], depth: int) -> Any:
    if schema.get("format") == "date-time":
        return _MOMENT
    match schema.get("type"):
        case "boolean":
            return True
        case "array":
            return [example_of(schema["items"], schemas, depth + 1)]
        case "object":
            properties = schema.get("properties", {})
            return {name: example_of(properties[name], schemas, depth + 1) for name in schema.get("required", ())}
        case _:
            return None


def _takes_null(members: Schema) -> bool:
    return any(branch.get("type") == "null" for branch in members.get("anyOf", ()))


def _places(schema: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place inside a schema that may hold another one, the innermost first."""
    pairs: Any = ()
    if isinstance(schema, dict):
        pairs = [(key, value) for key, value in schema.items() if key not in ("examples", "default")]
    elif isinstance(schema, list):
        pairs = enumerate(schema)
    for key, value in pairs:
        if isinstance(value, dict | list):
            yield from _places(value)
            yield schema, key
