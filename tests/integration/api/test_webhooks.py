"""``/v1/webhooks``: secrets shown once, every answer to a POST repeatable, and nothing of another tenant's."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from jobs.credentials import Vault
from jobs.repository.database import Database
from jobs.settings import Settings
from jobs.webhooks.requests import NewWebhook
from jobs.webhooks.service import WebhookService
from tests.integration.api.test_credentials import stored_text

URL = "https://hooks.example.com/quantry?token=abc"
NEW: dict[str, Any] = {"url": URL}
MISSING = "wh_0123456789abcdef01234567"
NO_DELIVERY = "msg_0123456789abcdef01234567"
FIELDS = {
    *("id", "object", "url", "description", "events", "enabled", "disabled_reason", "failing_since"),
    *("previous_secret_until", "created_at"),
}
ROUTES = [
    ("GET", ""),
    ("PATCH", ""),
    ("DELETE", ""),
    ("POST", "/rotate"),
    ("POST", "/test"),
    ("GET", "/deliveries"),
    ("GET", "/deliveries/{delivery}"),
    ("POST", "/deliveries/{delivery}/redeliver"),
]


@pytest.fixture
def service(database: Database, settings: Settings) -> WebhookService:
    """Webhooks, as no client reaches them."""
    return WebhookService(database, Vault.open(settings), settings)


def create(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/webhooks", json={**NEW, **fields})
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


def test_a_secret_is_shown_once_and_kept_sealed(client: httpx.Client, database: Database) -> None:
    response = client.post("/v1/webhooks", json={**NEW, "description": "mine", "events": ["job.failed"]})
    created = response.json()
    assert (response.status_code, response.headers["Location"]) == (201, f"/v1/webhooks/{created['id']}")
    assert response.headers["Cache-Control"] == "no-store"
    assert created.keys() == FIELDS | {"secret"}
    assert (created["url"], created["events"], created["description"]) == (URL, ["job.failed"], "mine")
    assert created["secret"].startswith("whsec_")
    shown = client.get(f"/v1/webhooks/{created['id']}")
    assert shown.json() == {key: value for key, value in created.items() if key != "secret"}
    assert client.get("/v1/webhooks").json()["data"] == [shown.json()]
    stored = stored_text(database)
    assert created["id"] in stored
    assert created["secret"].removeprefix("whsec_") not in stored
    assert created["secret"].encode().hex() not in stored


def test_a_repeated_post_has_the_same_secret_which_is_stored_nowhere(client: httpx.Client, database: Database) -> None:
    key = {"Idempotency-Key": "a"}
    first = client.post("/v1/webhooks", json=NEW, headers=key)
    again = client.post("/v1/webhooks", json=NEW, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    other = client.post("/v1/webhooks", json={**NEW, "description": "other"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(client.get("/v1/webhooks").json()["data"]) == 1
    path = f"/v1/webhooks/{first.json()['id']}"
    rotated = [client.post(f"{path}/rotate", headers=key).json()["secret"] for _ in range(2)]
    assert len({first.json()["secret"], *rotated}) == 2
    tested = [client.post(f"{path}/test", headers=key).json()["id"] for _ in range(2)]
    assert tested[0] == tested[1]
    again = client.post(f"{path}/deliveries/{tested[0]}/redeliver", headers=key)
    assert again.json() == client.post(f"{path}/deliveries/{tested[0]}/redeliver", headers=key).json()
    assert len(client.get(f"{path}/deliveries").json()["data"]) == 1
    stored = stored_text(database)
    assert not any(secret.removeprefix("whsec_") in stored for secret in (first.json()["secret"], *rotated))


def test_an_etag_tells_whether_it_changed(client: httpx.Client) -> None:
    path = f"/v1/webhooks/{create(client)['id']}"
    etag = client.get(path).headers["ETag"]
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 304
    changed = client.patch(path, json={"enabled": False, "events": ["job.running"], "description": "new"})
    assert changed.status_code == 200
    fields = ("enabled", "disabled_reason", "events", "description")
    assert [changed.json()[name] for name in fields] == [False, "requested", ["job.running"], "new"]
    fresh = client.get(path, headers={"If-None-Match": etag})
    assert (fresh.status_code, fresh.json()) == (200, changed.json())
    assert fresh.headers["ETag"] == changed.headers["ETag"] != etag
    assert client.post(f"{path}/test").json()["code"] == "invalid_state"
    assert client.patch(path, json={"enabled": True}).json()["disabled_reason"] is None
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == client.delete(path).status_code == 404


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"url": "http://example.com/zqSentinel"}, "/url"),
    ({"url": "https://127.0.0.1/zqSentinel"}, "/url"),
    ({"url": "https://user:zqSentinel@example.com/"}, "/url"),
    ({"url": "https://2130706433/"}, "/url"),
    ({"url": "https://exa mple.com/zqSentinel"}, "/url"),
    ({"url": "https://example.com/" + "zqSentinel" * 300}, "/url"),
    ({"url": "https://example.com/\x00"}, "/url"),
    ({"url": 5}, "/url"),
    ({}, "/url"),
    ({**NEW, "events": []}, "/events"),
    ({**NEW, "events": ["job.exploded"]}, "/events/0"),
    ({**NEW, "events": ["job.failed", "job.failed"]}, "/events"),
    ({**NEW, "description": "x" * 257}, "/description"),
    ({**NEW, "secret": "whsec_zqSentinel"}, "/secret"),
]


def test_what_does_not_fit_is_refused_by_its_place(client: httpx.Client) -> None:
    for body, pointer in REFUSED:
        response = client.post("/v1/webhooks", json=body)
        assert (response.status_code, [error["pointer"] for error in response.json()["errors"]]) == (422, [pointer])
        assert "zqSentinel" not in response.text
    assert client.get("/v1/webhooks").json()["data"] == []


def test_changes_that_change_nothing_or_too_much_are_refused(client: httpx.Client) -> None:
    path = f"/v1/webhooks/{create(client)['id']}"
    bodies: list[Any] = [{}, {"enabled": None}, {"enabled": 1}, {"url": "http://example.com"}, {"id": "wh_1"}, []]
    for body in bodies:
        assert client.patch(path, json=body).status_code == 422
    assert client.get(path).headers["ETag"] == '"1"'


def test_there_is_a_bound_for_each_tenant(client: httpx.Client, service: WebhookService, settings: Settings) -> None:
    for _ in range(settings.webhook_max_endpoints):
        create(client)
    refused = client.post("/v1/webhooks", json=NEW)
    assert (refused.status_code, refused.json()["code"]) == (409, "quota_exceeded")
    service.create(NewWebhook.model_validate(NEW), tenant="other")
    client.delete(f"/v1/webhooks/{client.get('/v1/webhooks').json()['data'][0]['id']}")
    create(client)


def test_pages_go_from_the_newest_to_the_oldest(client: httpx.Client) -> None:
    ids = [create(client)["id"] for _ in range(5)]
    first = client.get("/v1/webhooks?limit=3").json()
    rest = client.get("/v1/webhooks", params={"limit": 3, "after": first["next_cursor"]}).json()
    assert [each["id"] for each in [*first["data"], *rest["data"]]] == ids[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert client.get("/v1/webhooks?after=bm9uc2Vuc2U").status_code == 422


def test_deliveries_are_listed_and_sent_again(client: httpx.Client, submit: Callable[..., dict[str, Any]]) -> None:
    path = f"/v1/webhooks/{create(client, events=['job.queued', 'job.cancelled'])['id']}"
    job = submit()["id"]
    client.post(f"/v1/jobs/{job}/cancel")
    tested = client.post(f"{path}/test")
    assert (tested.status_code, tested.headers["Retry-After"]) == (202, "2")
    listed = client.get(f"{path}/deliveries").json()["data"]
    assert [each["type"] for each in listed] == ["webhook.test", "job.cancelled", "job.queued"]
    assert [each["payload"]["data"]["id"] for each in listed] == [path.rsplit("/", 1)[-1], job, job]
    assert client.get(tested.headers["Location"]).json() == listed[0] == tested.json()
    assert {each["status"] for each in listed} == {"pending"}
    assert listed[0]["next_attempt_at"] is not None
    page = client.get(f"{path}/deliveries?limit=2").json()
    rest = client.get(f"{path}/deliveries", params={"after": page["next_cursor"]}).json()
    assert page["data"] + rest["data"] == listed
    assert client.get(f"{path}/deliveries?status=failed").json()["data"] == []
    assert len(client.get(f"{path}/deliveries?status=pending").json()["data"]) == 3
    assert client.get(f"{path}/deliveries?status=lost").status_code == 422
    again = client.post(f"{path}/deliveries/{listed[1]['id']}/redeliver")
    assert (again.status_code, again.json()["id"]) == (202, listed[1]["id"])
    assert client.post(f"{path}/deliveries/{NO_DELIVERY}/redeliver").json()["code"] == "delivery_not_found"


def _asked(client: httpx.Client, method: str, path: str) -> tuple[int, dict[str, Any]]:
    response = client.request(method, path, json={"enabled": False} if method == "PATCH" else None)
    problem = response.json()
    del problem["request_id"], problem["instance"]
    return response.status_code, problem


def test_another_tenants_ids_look_missing(client: httpx.Client, service: WebhookService) -> None:
    foreign = service.create(NewWebhook.model_validate(NEW), tenant="other").id
    delivery = service.test(foreign, tenant="other").id
    before = service.get(foreign, tenant="other"), service.list_deliveries(foreign, tenant="other")
    for method, tail in ROUTES:
        there = _asked(client, method, f"/v1/webhooks/{foreign}" + tail.format(delivery=delivery))
        nowhere = _asked(client, method, f"/v1/webhooks/{MISSING}" + tail.format(delivery=NO_DELIVERY))
        assert there == nowhere
        assert (there[0], there[1]["code"]) == (404, "webhook_not_found")
    assert before == (service.get(foreign, tenant="other"), service.list_deliveries(foreign, tenant="other"))
    assert client.get("/v1/webhooks").json()["data"] == []


def test_another_tenants_delivery_looks_missing_behind_ones_own_webhook(
    client: httpx.Client, service: WebhookService
) -> None:
    mine = create(client)["id"]
    foreign = service.create(NewWebhook.model_validate(NEW), tenant="other").id
    delivery = service.test(foreign, tenant="other").id
    for method, tail in ROUTES[-2:]:
        there = _asked(client, method, f"/v1/webhooks/{mine}" + tail.format(delivery=delivery))
        assert there == _asked(client, method, f"/v1/webhooks/{mine}" + tail.format(delivery=NO_DELIVERY))
        assert there[1]["code"] == "delivery_not_found"


def test_what_is_no_id_is_not_found_also_with_a_key(client: httpx.Client) -> None:
    for nonsense in ("%00", "%FF%FE", "..%2F..", "x" * 3000, "wh_%00", f"job_{'0' * 24}"):
        for method, tail in ROUTES:
            path = f"/v1/webhooks/{nonsense}" + tail.format(delivery=nonsense)
            headers = {"Idempotency-Key": "k"} if method == "POST" else {}
            response = client.request(
                method, path, json={"enabled": True} if method == "PATCH" else None, headers=headers
            )
            assert (response.status_code, response.headers["Content-Type"]) == (404, "application/problem+json")
