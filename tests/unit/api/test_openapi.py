"""The OpenAPI document is whole: what it refers to exists, every operation tells of problems, every body is typed."""

import json
import re
from typing import Any

import pytest

from api.main import create_app

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
