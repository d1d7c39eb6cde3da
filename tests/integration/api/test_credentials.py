"""``/v1/credentials``: write-only, whatever one asks, and wherever one looks."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from jobs.credentials import MAX_PER_TENANT, CredentialService, Vault
from jobs.kit.errors import CredentialNotFound, CredentialUnreadable
from jobs.repository.database import Database
from jobs.settings import Settings
from tests.integration.api.conftest import BODY

TOKEN = "hf_hunter2secret"  # noqa: S105 — opens nothing
NEW = {"name": "mine", "kind": "hub", "token": TOKEN}
ELSEWHERE = "cred_0123456789abcdef01234567"
FIELDS = {"id", "object", "name", "kind", "created_at", "last_used_at"}


@pytest.fixture
def service(database: Database, settings: Settings) -> CredentialService:
    """The credentials, as a worker reaches them."""
    return CredentialService(database, Vault.open(settings))


def create(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/credentials", json={**NEW, **fields})
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


def stored_text(database: Database) -> str:
    """Every row of every table, as text."""
    with database.transaction() as session:
        names = session.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        rows = [row for name in names for row in session.execute(text(f'SELECT t::text FROM "{name}" t')).scalars()]  # noqa: S608 — names of our tables
    return "\n".join(rows)


def test_a_token_goes_in_and_never_comes_out(client: httpx.Client, database: Database) -> None:
    created = create(client)
    assert created.keys() == FIELDS
    assert (created["object"], created["name"], created["kind"], created["last_used_at"]) == (
        "credential",
        "mine",
        "hub",
        None,
    )
    listed = client.get("/v1/credentials").json()
    assert listed == {"object": "list", "data": [created], "has_more": False, "next_cursor": None}
    assert client.get(f"/v1/credentials/{created['id']}").status_code == 405
    stored = stored_text(database)
    assert created["id"] in stored
    assert TOKEN not in stored
    assert TOKEN.encode().hex() not in stored


def test_a_worker_gets_the_token_and_leaves_the_time(client: httpx.Client, service: CredentialService) -> None:
    created = create(client)
    assert service.hub_token(created["id"], tenant="default") == TOKEN
    used = client.get("/v1/credentials").json()["data"][0]["last_used_at"]
    assert used > created["created_at"]


def test_a_worker_with_another_key_is_told(client: httpx.Client, database: Database, tmp_path: Path) -> None:
    created = create(client)
    stranger = CredentialService(database, Vault.open(Settings(data_dir=tmp_path / "elsewhere")))
    with pytest.raises(CredentialUnreadable):
        stranger.hub_token(created["id"], tenant="default")
    assert client.get("/v1/credentials").json()["data"][0]["last_used_at"] is None


def test_a_repeated_post_is_answered_once_and_keeps_no_token(client: httpx.Client, database: Database) -> None:
    key = {"Idempotency-Key": "a"}
    first = client.post("/v1/credentials", json=NEW, headers=key)
    again = client.post("/v1/credentials", json=NEW, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    other = client.post("/v1/credentials", json={**NEW, "token": f"{TOKEN}2"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(client.get("/v1/credentials").json()["data"]) == 1
    assert TOKEN not in stored_text(database)


def test_the_hash_of_a_request_can_not_be_made_without_the_key(
    client: httpx.Client, database: Database, tmp_path: Path
) -> None:
    client.post("/v1/credentials", json=NEW, headers={"Idempotency-Key": "a"})
    (stored,) = _request_hashes(database)
    stranger = Vault.open(Settings(data_dir=tmp_path / "elsewhere"))
    assert stored != stranger.digest("mine", "hub", TOKEN)
    owner = Vault.open(Settings(data_dir=tmp_path))
    assert stored == owner.digest("mine", "hub", TOKEN)


def _request_hashes(database: Database) -> list[str]:
    with database.transaction() as session:
        return list(session.scalars(text("SELECT request_hash FROM idempotency_keys")))


def test_pages_go_from_the_newest_to_the_oldest(client: httpx.Client) -> None:
    ids = [create(client, name=f"n{number}")["id"] for number in range(5)]
    first = client.get("/v1/credentials?limit=3").json()
    rest = client.get("/v1/credentials", params={"limit": 3, "after": first["next_cursor"]}).json()
    assert [each["id"] for each in [*first["data"], *rest["data"]]] == ids[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert client.get("/v1/credentials?after=bm9uc2Vuc2U").status_code == 422


def test_a_deleted_credential_is_gone(client: httpx.Client, service: CredentialService) -> None:
    created = create(client)
    assert client.delete(f"/v1/credentials/{created['id']}").status_code == 204
    assert client.delete(f"/v1/credentials/{created['id']}").json()["code"] == "credential_not_found"
    assert client.get("/v1/credentials").json()["data"] == []
    with pytest.raises(CredentialNotFound):
        service.hub_token(created["id"], tenant="default")


def test_another_tenants_credential_looks_missing(client: httpx.Client, service: CredentialService) -> None:
    created = create(client)
    with pytest.raises(CredentialNotFound):
        service.delete(created["id"], tenant="other")
    with pytest.raises(CredentialNotFound):
        service.hub_token(created["id"], tenant="other")
    assert service.list(tenant="other").data == ()
    assert len(client.get("/v1/credentials").json()["data"]) == 1


@pytest.mark.parametrize("missing", [ELSEWHERE, "cred_", "job_0123456789abcdef01234567", "%00", "x" * 300])
def test_deleting_what_is_not_there(client: httpx.Client, missing: str) -> None:
    response = client.delete(f"/v1/credentials/{missing}")
    assert (response.status_code, response.json()["code"]) == (404, "credential_not_found")


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"token": f"{TOKEN} {TOKEN}"}, "/token"),
        ({"token": f"{TOKEN}\r\nX: y"}, "/token"),
        ({"token": f"{TOKEN}é"}, "/token"),
        ({"token": TOKEN * 40}, "/token"),
        ({"token": ""}, "/token"),
        ({"token": [TOKEN]}, "/token"),
        ({"token": None}, "/token"),
        ({"name": ""}, "/name"),
        ({"name": TOKEN * 5}, "/name"),
        ({"name": "\x00"}, "/name"),
        ({"kind": TOKEN}, "/kind"),
        ({"secret": TOKEN}, "/secret"),
        ({TOKEN: TOKEN}, ""),
    ],
)
def test_what_does_not_fit_is_named_and_not_echoed(client: httpx.Client, wrong: dict[str, Any], pointer: str) -> None:
    response = client.post("/v1/credentials", json={**NEW, **wrong})
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]
    assert TOKEN not in response.text
    assert TOKEN not in str(response.headers)


def test_a_tenant_has_a_bounded_number(client: httpx.Client, database: Database) -> None:
    with database.transaction() as session:
        session.execute(
            text(
                "INSERT INTO credentials (id, tenant, name, kind, secret) "
                "SELECT 'cred_' || lpad(i::text, 24, '0'), 'default', 'n', 'hub', '' FROM generate_series(1, :many) i"
            ),
            {"many": MAX_PER_TENANT},
        )
    response = client.post("/v1/credentials", json=NEW)
    assert (response.status_code, response.json()["code"]) == (409, "quota_exceeded")


def test_a_job_can_name_only_credentials_that_are_there(client: httpx.Client) -> None:
    hub = {"source": "hub", "id": "org/model", "credential": ELSEWHERE}
    refused = client.post("/v1/jobs", json={**BODY, "model": hub})
    assert (refused.status_code, refused.json()["code"]) == (422, "credential_not_found")
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/model/credential"]
    target = {"hub": {"repo": "me/out", "credential": ELSEWHERE}}
    refused = client.post("/v1/jobs", json={**BODY, "output": target})
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/output/hub/credential"]
    known = {**hub, "credential": create(client)["id"]}
    assert client.post("/v1/jobs", json={**BODY, "model": known}).status_code == 202
