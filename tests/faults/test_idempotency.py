"""P7: a POST can be repeated: with its Idempotency-Key it is done once, whoever repeats it and whatever dies."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx
import pytest
from sqlalchemy import text

from jobs.kit.errors import IdempotencyConflict, IdempotencyInFlight
from jobs.repository import idempotency
from quant_engine.policy import JobRequest
from tests.faults.failpoints import Edge, Moment
from tests.faults.offices import Apis
from tests.faults.scale import scaled
from tests.integration.worker.conftest import TENANT, Office

POSTS: Final = 50
ROUNDS: Final = scaled(1, 20)
BODY: Final[dict[str, Any]] = {
    "model": {"source": "local", "id": "succeed"},
    "policy": {"preset": "trainable-smoothrot-w4a4"},
}
KEY: Final = {"Idempotency-Key": "night build 7"}


def until_answered(client: httpx.Client, path: str, body: object, key: str) -> httpx.Response:
    """Repeats a POST that is in flight elsewhere, as its answer asks."""
    for _ in range(200):
        response = client.post(path, json=body, headers={"Idempotency-Key": key})
        if response.status_code != 409 or response.json()["code"] != "idempotency_in_flight":
            return response
        assert response.headers["retry-after"] == "1"
    raise AssertionError("always in flight")


def answer_of(response: httpx.Response) -> tuple[Any, ...]:
    """All that a repeated POST must give again."""
    headers = tuple(response.headers.get(name) for name in ("location", "retry-after", "etag"))
    return response.status_code, json.dumps(response.json(), sort_keys=True), *headers


def test_fifty_parallel_posts_with_one_key_are_one_job_and_one_answer(client: httpx.Client) -> None:
    for number in range(ROUNDS):
        body = {**BODY, "metadata": {"round": str(number)}}
        with ThreadPoolExecutor(POSTS) as pool:
            asked = [pool.submit(until_answered, client, "/v1/jobs", body, f"round {number}") for _ in range(POSTS)]
        (answer,) = {answer_of(each.result()) for each in asked}
        assert answer[0] == 202
        assert len(client.get("/v1/jobs", params={"metadata[round]": str(number)}).json()["data"]) == 1


def test_parallel_cancels_and_retries_with_one_key_are_one_cancel_and_one_retry(
    office: Office, client: httpx.Client
) -> None:
    job_id = office.submit("succeed")
    for operation, retries in (("cancel", 0), ("retry", 1)):
        path = f"/v1/jobs/{job_id}/{operation}"
        with ThreadPoolExecutor(10) as pool:
            asked = [pool.submit(until_answered, client, path, {}, "once") for _ in range(10)]
        (answer,) = {answer_of(each.result()) for each in asked}
        assert answer[0] == 202
        with office.database.transaction() as session:
            assert session.scalars(text("SELECT retries FROM jobs")).one() == retries


def test_the_same_key_with_another_body_is_refused(client: httpx.Client) -> None:
    assert client.post("/v1/jobs", json=BODY, headers=KEY).status_code == 202
    other = client.post("/v1/jobs", json={**BODY, "metadata": {"a": "b"}}, headers=KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(client.get("/v1/jobs").json()["data"]) == 1


def test_the_same_key_of_another_tenant_is_another_job(office: Office) -> None:
    request, other = JobRequest.model_validate(BODY), JobRequest.model_validate({**BODY, "metadata": {"a": "b"}})
    made = {
        tenant: office.commands.create_job(wanted, tenant=tenant, idempotency_key="k")
        for tenant, wanted in (("anna", request), ("bert", request), ("carl", other))
    }
    assert [created for _, created in made.values()] == [True] * 3
    assert len({view.id for view, _ in made.values()}) == 3
    for tenant, (view, _) in made.items():
        assert [job.id for job in office.queries.list_jobs(tenant=tenant).data] == [view.id]
    with pytest.raises(IdempotencyConflict):
        office.commands.create_job(other, tenant="anna", idempotency_key="k")


def test_a_key_in_flight_is_answered_at_once_with_409_and_when_to_come_back(
    office: Office, client: httpx.Client
) -> None:
    with office.database.transaction() as session:
        assert idempotency.try_lock(session, TENANT, "POST /v1/jobs", KEY["Idempotency-Key"])
        response = client.post("/v1/jobs", json=BODY, headers=KEY)
        assert (response.status_code, response.json()["code"]) == (409, "idempotency_in_flight")
        assert response.headers["retry-after"] == "1"
        with pytest.raises(IdempotencyInFlight):
            office.commands.create_job(
                JobRequest.model_validate(BODY), tenant=TENANT, idempotency_key=KEY["Idempotency-Key"]
            )
    assert client.post("/v1/jobs", json=BODY, headers=KEY).status_code == 202


def test_a_repetition_after_the_api_died_in_the_middle_is_the_same_one_job(office: Office, apis: Apis) -> None:
    edges: tuple[tuple[Edge, Moment], ...] = (("commit", "before"), ("commit", "after"), ("publish", "before"))
    apis.start(len(edges) + 1)
    with httpx.Client(timeout=60) as client:
        for number, (edge, moment) in enumerate(edges):
            body, key = {**BODY, "metadata": {"number": str(number)}}, f"attempt {number}"
            apis.dies_while_asked(edge, moment, client, json=body, headers={"Idempotency-Key": key})
            again = until_answered(client, f"{apis.url}/v1/jobs", body, key)
            assert again.status_code == 202
            found = client.get(f"{apis.url}/v1/jobs", params={"metadata[number]": str(number)}).json()["data"]
            assert [job["id"] for job in found] == [again.json()["id"]]
    assert apis.running == 1
    assert len(office.queries.list_jobs(tenant=TENANT).data) == len(edges)
