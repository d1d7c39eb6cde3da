"""The OpenAPI document is whole: what it refers to exists, every operation tells of problems, every body is typed."""

import json
import re
from importlib.metadata import version
from typing import Any

import pytest
from pydantic import TypeAdapter

from api.main import create_app
from api.schemas import example_of, reachable, references
from quant_engine.policy import JobRequest

_BUILT = {
    ("post", "/v1/jobs"),
    ("get", "/v1/jobs"),
    ("get", "/v1/jobs/{job_id}"),
    ("delete", "/v1/jobs/{job_id}"),
    ("post", "/v1/jobs/{job_id}/cancel"),
    ("post", "/v1/jobs/{job_id}/retry"),
    ("get", "/v1/jobs/{job_id}/events"),
    ("get", "/v1/jobs/{job_id}/layers"),
    ("get", "/v1/jobs/{job_id}/report"),
    ("get", "/v1/jobs/{job_id}/artifacts"),
    ("get", "/v1/jobs/{job_id}/archive"),
    ("get", "/v1/artifacts/{artifact_id}/content"),
    ("post", "/v1/jobs/{job_id}/publications"),
    ("get", "/v1/jobs/{job_id}/publications"),
    ("get", "/v1/publications/{publication_id}"),
    ("post", "/v1/publications/{publication_id}/retry"),
    ("post", "/v1/jobs/{job_id}/publications"),
    ("get", "/v1/jobs/{job_id}/publications"),
    ("get", "/v1/publications/{publication_id}"),
    ("post", "/v1/publications/{publication_id}/retry"),
    ("post", "/v1/credentials"),
    ("get", "/v1/credentials"),
    ("delete", "/v1/credentials/{credential_id}"),
    ("post", "/v1/webhooks"),
    ("get", "/v1/webhooks"),
    ("get", "/v1/webhooks/{webhook_id}"),
    ("patch", "/v1/webhooks/{webhook_id}"),
    ("delete", "/v1/webhooks/{webhook_id}"),
    ("post", "/v1/webhooks/{webhook_id}/rotate"),
    ("post", "/v1/webhooks/{webhook_id}/test"),
    ("get", "/v1/webhooks/{webhook_id}/deliveries"),
    ("get", "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}"),
    ("post", "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver"),
    ("get", "/v1/presets"),
    ("get", "/v1/capabilities"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/metrics"),
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app().openapi()


def test_it_lists_exactly_what_is_built(document: dict[str, Any]) -> None:
    assert {(method, path) for path, item in document["paths"].items() for method in item} == _BUILT


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names <= set(document["components"]["schemas"])
    assert {"JobRequest", "JobView", "Problem"} <= names


def test_every_operation_tells_of_problems(document: dict[str, Any]) -> None:
    for item in document["paths"].values():
        for operation in item.values():
            assert set(operation["responses"]["default"]["content"]) == {"application/problem+json"}
            assert "422" not in operation["responses"]


def test_creating_a_job_takes_a_job_request(document: dict[str, Any]) -> None:
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["$ref"].endswith("/JobRequest")
    assert document["components"]["schemas"]["JobRequest"]["additionalProperties"] is False


def test_a_token_is_written_and_never_read(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["NewCredential"]["properties"]["token"]["writeOnly"] is True
    assert set(schemas["CredentialView"]["properties"]) == {
        "id",
        "object",
        "name",
        "kind",
        "created_at",
        "last_used_at",
    }


def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))


def test_operation_ids_are_the_names_of_functions(document: dict[str, Any]) -> None:
    ids = {operation["operationId"] for item in document["paths"].values() for operation in item.values()}
    assert {"create_job", "list_jobs", "get_job", "cancel_job", "get_report", "list_events", "list_presets"} <= ids
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", each) for each in ids)


def test_the_version_is_that_of_the_package(document: dict[str, Any]) -> None:
    assert document["info"]["version"] == version("quantry")


def test_every_tag_is_described(document: dict[str, Any]) -> None:
    used = {tag for item in document["paths"].values() for operation in item.values() for tag in operation["tags"]}
    assert used == {tag["name"] for tag in document["tags"] if tag["description"]}


def _properties(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    schemas = document["components"]["schemas"]
    return [
        (f"{name}.{field}", members)
        for name, schema in schemas.items()
        for field, members in schema.get("properties", {}).items()
    ]


def test_every_property_has_a_description_and_an_example(document: dict[str, Any]) -> None:
    found = _properties(document)
    assert len(found) > 300
    assert [name for name, members in found if not members.get("description")] == []
    assert [name for name, members in found if members.get("examples", [None])[0] is None] == []
    parameters = [
        parameter
        for item in document["paths"].values()
        for operation in item.values()
        for parameter in operation.get("parameters", ())
    ]
    assert [parameter["name"] for parameter in parameters if not parameter.get("description")] == []


def test_the_example_of_a_request_is_a_request(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name, members in schemas["JobRequest"]["properties"].items():
        annotation = JobRequest.model_fields[name].rebuild_annotation()
        for example in (*members["examples"], example_of(members, schemas)):
            TypeAdapter(annotation).validate_python(example)


def test_numbers_of_a_request_have_a_range_and_texts_a_length_or_a_choice(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    bounds = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "enum", "const", "pattern", "maxLength")
    for name in reachable(schemas, "JobRequest", "HubTarget", "NewWebhook", "WebhookChanges"):
        for field, members in schemas[name].get("properties", {}).items():
            for branch in (members, *members.get("anyOf", ())):
                if branch.get("type") in ("integer", "number", "string"):
                    assert any(bound in branch for bound in bounds), (name, field)


def test_a_schema_has_no_default_that_a_generated_client_would_send(document: dict[str, Any]) -> None:
    assert [name for name, members in _properties(document) if "default" in members] == []


def test_a_field_that_can_not_be_left_to_chance_is_required(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["Evaluation"]["required"] == ["perplexity"]
    assert schemas["JobRequest"]["required"] == ["model", "policy"]
    assert "required" not in schemas["Policy"]
    assert "kind" in schemas["BlockTraining"]["required"]


def test_no_object_of_a_response_is_untyped(document: dict[str, Any]) -> None:
    """Only what the model or the method itself shapes is free."""
    free = {"ReportModel.config", "ReportModel.quantization_config", "Report.paper", "Report.done"} | {
        f"Report.{stage}" for stage in ("search", "training", "selection")
    }
    untyped = {
        name
        for name, members in _properties(document)
        for branch in (members, *members.get("anyOf", ()))
        if branch.get("type") == "object"
        and not isinstance(branch.get("additionalProperties") or branch.get("patternProperties"), dict)
    }
    assert untyped <= free


def test_a_job_shows_all_fields_of_a_resolved_policy(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert next(references(schemas["JobView"]["properties"]["policy"])) == "ResolvedPolicy"
    for name in reachable(schemas, "ResolvedPolicy"):
        assert schemas[name].get("required", []) == list(schemas[name].get("properties", {})), name


def test_events_are_typed(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    kinds = [schemas[name]["properties"]["type"]["const"] for name in references(schemas["EventView"])]
    assert kinds == ["job.status", "stage.status", "progress", "layer.completed", "metric", "log", "done"]
