"""``/v1/jobs/{id}/publications`` and ``/v1/publications/{id}`` as a client meets them."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from jobs.credentials import CredentialService, Vault
from jobs.kit.errors import JobNotFound, JobProblem
from jobs.publications.lease import Commit, PublicationClaim, PublicationLeases
from jobs.publications.service import PublicationService
from jobs.repository.database import Database
from jobs.settings import Settings
from quant_engine.policy.request import HubTarget
from tests.integration.api.conftest import FILES, Hands

TARGET = {"repo": "me/tiny-w4a4"}
PROBLEM = JobProblem(code="hub_forbidden", category="user", detail="The token may not.", hint="Use another.")
SIZE = sum(len(content) for name, content in FILES.items() if name.startswith("checkpoint/"))


@pytest.fixture
def leases(database: Database, settings: Settings) -> PublicationLeases:
    """A worker's hands for publications."""
    return PublicationLeases(database, settings)


def claim(leases: PublicationLeases) -> PublicationClaim:
    claimed = leases.claim("test-worker")
    assert claimed is not None
    return claimed


def create(client: httpx.Client, job_id: str, **fields: Any) -> dict[str, Any]:
    response = client.post(f"/v1/jobs/{job_id}/publications", json={**TARGET, **fields})
    assert response.status_code == 202, response.text
    created: dict[str, Any] = response.json()
    return created


def test_a_publication_is_accepted_and_can_be_watched(
    client: httpx.Client, finished: str, leases: PublicationLeases
) -> None:
    response = client.post(f"/v1/jobs/{finished}/publications", json=TARGET)
    created = response.json()
    path = f"/v1/publications/{created['id']}"
    assert (response.status_code, response.headers["location"], response.headers["retry-after"]) == (202, path, "2")
    assert created == {
        "id": created["id"],
        "object": "publication",
        "job_id": finished,
        "status": "queued",
        "is_terminal": False,
        "repo": "me/tiny-w4a4",
        "private": True,
        "revision": "main",
        "attempt": 0,
        "progress": {"bytes_done": 0, "bytes_total": SIZE},
        "commit": None,
        "error": None,
        "last_error": None,
        "created_at": created["created_at"],
        "started_at": None,
        "finished_at": None,
        "next_attempt_at": None,
    }
    first = client.get(path)
    assert (first.json(), first.headers["etag"]) == (created, response.headers["etag"])
    assert client.get(path, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    claimed = claim(leases)
    assert {file.path for file in claimed.files} == {"config.json", "model.safetensors", "empty.txt"}
    leases.record_progress(claimed, SIZE // 2, SIZE)
    running = client.get(path, headers={"If-None-Match": first.headers["etag"]}).json()
    assert (running["status"], running["attempt"]) == ("running", 1)
    assert running["progress"] == {"bytes_done": SIZE // 2, "bytes_total": SIZE}
    leases.succeed(claimed, Commit("a" * 40, "https://hub.example/commit/a"))
    ended = client.get(path)
    assert ended.json()["commit"] == {"sha": "a" * 40, "url": "https://hub.example/commit/a"}
    assert (ended.json()["is_terminal"], "retry-after" in ended.headers) == (True, False)
    assert ended.json()["finished_at"] >= ended.json()["started_at"] >= created["created_at"]


def test_a_repeated_key_repeats_the_answer(client: httpx.Client, finished: str) -> None:
    headers = {"Idempotency-Key": "once"}
    path = f"/v1/jobs/{finished}/publications"
    first, second = (client.post(path, json=TARGET, headers=headers) for _ in range(2))
    assert (first.json(), first.headers["etag"]) == (second.json(), second.headers["etag"])
    assert len(client.get(path).json()["data"]) == 1
    other = client.post(path, json={**TARGET, "private": False}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_a_failed_one_can_be_retried_and_no_other(
    client: httpx.Client, finished: str, leases: PublicationLeases
) -> None:
    created = create(client, finished)
    path = f"/v1/publications/{created['id']}"
    early = client.post(f"{path}/retry")
    assert (early.status_code, early.json()["code"]) == (409, "invalid_state")
    leases.fail(claim(leases), PROBLEM)
    failed = client.get(path).json()
    assert (failed["status"], failed["error"]["code"], failed["error"]["instance"]) == ("failed", "hub_forbidden", path)
    headers = {"Idempotency-Key": "again"}
    retried, repeated = (client.post(f"{path}/retry", json={}, headers=headers) for _ in range(2))
    assert (retried.status_code, retried.headers["location"]) == (202, path)
    assert retried.json() == repeated.json()
    assert (retried.json()["status"], retried.json()["attempt"], retried.json()["error"]) == ("queued", 0, None)
    assert client.post(f"{path}/retry", json={"force": True}).status_code == 422


def test_a_job_lists_its_publications_newest_first(client: httpx.Client, finished: str) -> None:
    made = [create(client, finished, revision=f"v{number}")["id"] for number in range(3)]
    path = f"/v1/jobs/{finished}/publications"
    first = client.get(path, params={"limit": 2}).json()
    assert ([each["id"] for each in first["data"]], first["has_more"]) == ([made[2], made[1]], True)
    rest = client.get(path, params={"limit": 2, "after": first["next_cursor"]}).json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"], rest["next_cursor"]) == ([made[0]], False, None)
    assert client.get(path, params={"after": "nonsense"}).status_code == 422


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/repo"),
        ({"repo": "no-owner"}, "/repo"),
        ({"repo": "me/../x"}, "/repo"),
        ({"repo": "me/a--b"}, "/repo"),
        ({"repo": "me/x", "private": "no"}, "/private"),
        ({"repo": "me/x", "revision": "-x"}, "/revision"),
        ({"repo": "me/x", "credential": "hf_token"}, "/credential"),
        ({"repo": "me/x", "credential": f"cred_{'0' * 24}"}, "/credential"),
        ({"repo": "me/x", "token": "hf_token"}, "/token"),
    ],
)
def test_a_target_that_can_not_be(client: httpx.Client, finished: str, body: dict[str, Any], pointer: str) -> None:
    response = client.post(f"/v1/jobs/{finished}/publications", json=body)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]
    assert "hf_token" not in response.text


def test_a_job_that_is_not_over_says_when_to_ask_again(
    client: httpx.Client, submit: Callable[..., dict[str, Any]]
) -> None:
    response = client.post(f"/v1/jobs/{submit()['id']}/publications", json=TARGET)
    assert (response.status_code, response.json()["code"]) == (409, "invalid_state")
    assert response.headers["retry-after"]


def test_what_is_missing_or_anothers_looks_the_same(
    client: httpx.Client, finished: str, database: Database, settings: Settings
) -> None:
    for method, path in [
        ("POST", f"/v1/jobs/job_{'0' * 24}/publications"),
        ("GET", f"/v1/jobs/job_{'0' * 24}/publications"),
        ("GET", f"/v1/publications/pub_{'0' * 24}"),
        ("GET", f"/v1/publications/{finished}"),
        ("POST", f"/v1/publications/pub_{'0' * 24}/retry"),
    ]:
        response = client.request(
            method, path, json=TARGET if path.startswith("/v1/jobs") and method == "POST" else None
        )
        assert response.status_code == 404, path
    service = PublicationService(database, settings)
    for attempt in (
        lambda: service.create(finished, HubTarget.model_validate(TARGET), tenant="other"),
        lambda: service.list_of(finished, tenant="other"),
    ):
        with pytest.raises(JobNotFound):
            attempt()


def test_output_hub_is_published_with_its_credential(
    client: httpx.Client,
    submit: Callable[..., dict[str, Any]],
    hands: Hands,
    leases: PublicationLeases,
    database: Database,
    settings: Settings,
) -> None:
    credentials = CredentialService(database, Vault.open(settings))
    credential = credentials.create(tenant="default", name="mine", token=SecretStr("hf_secret")).id
    target = {**TARGET, "private": False, "revision": "w4a4", "credential": credential}
    job_id = submit(output={"hub": target})["id"]
    assert client.get(f"/v1/jobs/{job_id}/publications").json()["data"] == []
    hands.publish(hands.claim())
    (made,) = client.get(f"/v1/jobs/{job_id}/publications").json()["data"]
    assert (made["status"], made["private"], made["revision"]) == ("queued", False, "w4a4")
    assert claim(leases).credential_id == credential


def test_a_deleted_job_takes_its_publications_along(
    client: httpx.Client, finished: str, leases: PublicationLeases
) -> None:
    created = create(client, finished)
    claimed = claim(leases)
    assert client.delete(f"/v1/jobs/{finished}").status_code == 204
    assert client.get(f"/v1/publications/{created['id']}").status_code == 404
    assert not leases.heartbeat(claimed).ok
