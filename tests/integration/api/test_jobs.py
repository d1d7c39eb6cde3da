"""The life of a job over HTTP."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from api.main import create_app
from jobs.repository.database import Database
from jobs.settings import Settings
from tests.api_server import serving
from tests.integration.api.conftest import BODY, Hands

Submit = Callable[..., dict[str, Any]]


def test_create_answers_202_with_where_to_look_and_when(client: httpx.Client) -> None:
    response = client.post("/v1/jobs", json=BODY)
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert int(response.headers["retry-after"]) > 0
    assert job["status"] == "queued"
    assert job["progress"]["queue_position"] == 1
    assert job["policy"]["transform"]["kind"] == "none"
    assert job["policy_hash"].startswith("sha256:")
    assert client.get(job["links"]["self"]).json() == job


def test_a_job_goes_with_the_id_of_its_request(client: httpx.Client, hands: Hands) -> None:
    response = client.post("/v1/jobs", json=BODY, headers={"X-Request-ID": "night-build.7"})
    assert response.headers["x-request-id"] == "night-build.7"
    assert hands.claim().request_id == "night-build.7"


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"model": {"source": "local", "id": "absent"}}, "model_not_found", "/model/id"),
        ({"model": {"source": "local", "id": "../tiny"}}, "invalid_request", "/model/id"),
        ({"policy": {"preset": "absent"}}, "unknown_preset", "/policy/preset"),
        ({"policy": {"targets": ["re:("]}}, "bad_pattern", "/policy/targets/0"),
        ({"policy": {"transform": {"statistic": {"kind": "quantile", "q": 0.3}}}}, "invalid_request", None),
        ({"calibration": {"dataset": "absent"}}, "dataset_not_found", "/calibration/dataset"),
        ({"extra": 1}, "invalid_request", "/extra"),
    ],
)
def test_what_can_not_be_done_is_refused_at_once(
    client: httpx.Client, fields: dict[str, Any], code: str, pointer: str | None
) -> None:
    response = client.post("/v1/jobs", json={**BODY, **fields})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, code)
    assert problem["errors"][0]["pointer"] == (pointer or "/policy/transform/statistic/q")
    assert client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("policy", [..., None, {}, {"weights": {"format": "int8"}}])
def test_no_policy_is_chosen_for_a_request(client: httpx.Client, policy: Any) -> None:
    body = {"model": BODY["model"]} | ({} if policy is ... else {"policy": policy})
    response = client.post("/v1/jobs", json=body)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "policy_required")
    assert [error["pointer"] for error in problem["errors"]] == ["/policy"]
    assert all(f"'{name}'" in problem["detail"] for name in ("w8a8", "w4a16", "nvfp4"))
    both = client.post("/v1/jobs", json={**body, "extra": 1, "policy": None}).json()["errors"]
    assert [(error["pointer"], error["code"]) for error in both] == [
        ("/extra", "extra_forbidden"),
        ("/policy", "policy_required"),
    ]


@pytest.mark.parametrize("pattern", ["re:a{99999999999}", "re:(?P<x>a)(?P<x>b)", "re:" + "(" * 250])
def test_hostile_patterns_are_answered(client: httpx.Client, pattern: str) -> None:
    response = client.post("/v1/jobs", json={**BODY, "policy": {"targets": [pattern]}})
    assert response.status_code in (202, 422)


def test_idempotency_key(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "night build 7"}
    first = client.post("/v1/jobs", json=BODY, headers=headers)
    again = client.post("/v1/jobs", json=BODY, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert first.headers["location"] == again.headers["location"]
    other = client.post("/v1/jobs", json={**BODY, "metadata": {"a": "b"}}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(client.get("/v1/jobs").json()["data"]) == 1


def test_etag_and_retry_after(client: httpx.Client, submit: Submit, hands: Hands) -> None:
    path = submit()["links"]["self"]
    queued = client.get(path)
    assert int(queued.headers["retry-after"]) > 0
    unchanged = client.get(path, headers={"If-None-Match": queued.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["etag"] == queued.headers["etag"]
    claim = hands.claim()
    running = client.get(path, headers={"If-None-Match": queued.headers["etag"]})
    assert (running.status_code, running.json()["status"]) == (200, "running")
    assert int(running.headers["retry-after"]) > 0
    hands.publish(claim)
    done = client.get(path)
    assert done.json()["status"] == "succeeded"
    assert done.json()["progress"]["fraction"] == 1.0
    assert "retry-after" not in done.headers
    assert client.get(path, headers={"If-None-Match": "*"}).status_code == 304


def test_list_pages_and_filters(client: httpx.Client, submit: Submit) -> None:
    ids = [submit(metadata={"team": "search" if index % 2 else "ads"})["id"] for index in range(5)]
    seen, after = [], None
    while True:
        page = client.get("/v1/jobs", params={"limit": 2, **({"after": after} if after else {})}).json()
        assert page["object"] == "list"
        seen += [job["id"] for job in page["data"]]
        after = page["next_cursor"]
        assert page["has_more"] is (after is not None)
        if after is None:
            break
    assert seen == ids[::-1]
    labeled = client.get("/v1/jobs", params={"metadata[team]": "search"}).json()["data"]
    assert {job["id"] for job in labeled} == {ids[1], ids[3]}
    assert client.get("/v1/jobs", params={"status": "running"}).json()["data"] == []
    assert len(client.get("/v1/jobs", params={"status": "queued", "model": "tiny"}).json()["data"]) == 5
    assert client.get("/v1/jobs", params={"model": "other"}).json()["data"] == []
    assert client.get("/v1/jobs", params={"after": "bm9uc2Vuc2U"}).json()["code"] == "invalid_query"


def test_cancel(client: httpx.Client, submit: Submit, hands: Hands) -> None:
    path = submit()["links"]["self"]
    response = client.post(f"{path}/cancel", json={})
    assert (response.status_code, response.json()["status"]) == (202, "cancelled")
    assert response.headers["location"] == path
    assert "retry-after" in response.headers
    late = client.post(f"{path}/cancel")
    assert (late.status_code, late.json()["code"]) == (409, "invalid_state")
    running = submit()["links"]["self"]
    hands.claim()
    for _ in range(2):
        assert client.post(f"{running}/cancel").json()["status"] == "cancelling"


def test_cancel_takes_no_fields(client: httpx.Client, submit: Submit) -> None:
    path = submit()["links"]["self"]
    refused = client.post(f"{path}/cancel", json={"force": True})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/force")
    assert client.get(path).json()["status"] == "queued"


def test_cancel_with_a_key_repeats_its_response(client: httpx.Client, submit: Submit) -> None:
    path = submit()["links"]["self"]
    answers = [client.post(f"{path}/cancel", headers={"Idempotency-Key": "stop"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()


def test_delete(client: httpx.Client, finished: str, settings: Settings, submit: Submit) -> None:
    kept = set(settings.artifacts_dir.glob("blobs/*/*"))
    assert client.delete(f"/v1/jobs/{finished}").status_code == 204
    assert client.get(f"/v1/jobs/{finished}").status_code == 404
    assert set(settings.artifacts_dir.glob("blobs/*/*")) == kept, "bytes are left to garbage collection"
    assert client.delete(f"/v1/jobs/{finished}").status_code == 404
    queued = submit()["id"]
    assert client.delete(f"/v1/jobs/{queued}").json()["code"] == "invalid_state"


@pytest.mark.parametrize("job_id", ["job_" + "0" * 24, "x", "job_%00", "%F0%9F%92%A9", "job_" + "A" * 5000, "..%2f.."])
@pytest.mark.parametrize("tail", ["", "/events", "/layers", "/report", "/artifacts", "/archive"])
def test_ids_that_do_not_exist(client: httpx.Client, job_id: str, tail: str) -> None:
    response = client.get(f"/v1/jobs/{job_id}{tail}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_presets_are_what_a_job_resolves_to(client: httpx.Client, submit: Submit) -> None:
    for preset in client.get("/v1/presets").json()["data"]:
        assert submit(policy={"preset": preset["name"]})["policy"] == preset["policy"]


def test_capabilities(client: httpx.Client, hands: Hands) -> None:
    hands.leases.beat_worker("w1", hostname="node", pid=1, device="cpu")
    capabilities = client.get("/v1/capabilities").json()
    assert "LlamaForCausalLM" in capabilities["architectures"]
    assert capabilities["weights"]["formats"] == [*(f"int{bits}" for bits in range(2, 9)), "fp8", "nvfp4", "mxfp4"]
    assert capabilities["profiles"] == ["rotated", "universal"]
    assert "none" in capabilities["activations"]["formats"]
    assert "smooth_rotation" in capabilities["transforms"]["kinds"]
    datasets = {dataset["name"]: dataset for dataset in capabilities["datasets"]}
    assert datasets["pydoc"] == {
        "name": "pydoc",
        "source": "built_in",
        "uses": ["calibration", "evaluation"],
        "default": True,
        "default_for": ["evaluation"],
    }
    assert datasets["tales"]["uses"] == datasets["tales"]["default_for"] == ["calibration"]
    assert datasets["self"]["source"] == "model"
    assert (datasets["wikitext2"]["source"], datasets["wikitext2"]["default_for"]) == ("hub", [])
    assert capabilities["local_models"] == ["tiny"]
    assert capabilities["devices"] == ["cpu"]
    assert [worker["hostname"] for worker in capabilities["workers"]] == ["node"]
    assert capabilities["limits"]["max_body_bytes"] == 100_000


@pytest.mark.parametrize(("seconds", "shown"), [(86_400.0, 86_400), (3600.5, 3600)])
def test_capabilities_show_how_long_an_idempotency_key_is_remembered(
    settings: Settings, seconds: float, shown: int
) -> None:
    with serving(create_app(settings.model_copy(update={"idempotency_seconds": seconds}))) as url:
        capabilities = httpx.get(f"{url}/v1/capabilities").json()
    assert capabilities["limits"]["idempotency_key_seconds"] == shown


def test_ready_only_with_a_worker(client: httpx.Client, hands: Hands) -> None:
    problem = client.get("/readyz").json()
    assert problem["checks"]["database"]["status"] == "ok"
    assert problem["checks"]["workers"]["status"] == "missing"
    hands.leases.beat_worker("w1", hostname="node", pid=1, device="cpu")
    response = client.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "ready")
    assert response.json()["checks"]["workers"]["workers"] == 1


def test_not_ready_before_the_migrations(settings: Settings, database: Database) -> None:
    url = database.engine.url.set(database="quantry_empty").render_as_string(hide_password=False)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CREATE DATABASE quantry_empty")
        try:
            empty = settings.model_copy(update={"database_url": SecretStr(url)})
            with serving(create_app(empty)) as served:
                problem = httpx.get(f"{served}/readyz").json()
        finally:
            connection.exec_driver_sql("DROP DATABASE quantry_empty WITH (FORCE)")
    assert problem["checks"]["database"]["status"] == "not_migrated"
    assert "alembic upgrade head" in problem["detail"]


@pytest.mark.usefixtures("finished")
def test_metrics_count_jobs(client: httpx.Client, submit: Submit) -> None:
    submit()
    lines = client.get("/metrics").text.splitlines()
    assert 'quantry_jobs{status="queued"} 1.0' in lines
    assert 'quantry_jobs{status="succeeded"} 1.0' in lines
    assert 'quantry_jobs{status="failed"} 0.0' in lines
    assert 'quantry_http_requests_total{method="POST",route="/v1/jobs",status="202"} 2.0' in lines


def test_retry_answers_202_and_queues_the_job_again(client: httpx.Client, submit: Submit, hands: Hands) -> None:
    job = submit()
    path = f"{job['links']['self']}/retry"
    refused = client.post(path)
    assert (refused.status_code, refused.json()["code"]) == (409, "invalid_state")
    assert int(refused.headers["retry-after"]) > 0
    client.post(f"{job['links']['self']}/cancel")
    headers = {"Idempotency-Key": "again", "X-Request-ID": "second-try"}
    response = client.post(path, json={"from_stage": "train"}, headers=headers)
    retried = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == job["links"]["self"]
    assert int(response.headers["retry-after"]) > 0
    assert client.get(job["links"]["self"]).headers["etag"] == response.headers["etag"]
    assert (retried["id"], retried["status"], retried["retries"]) == (job["id"], "queued", 1)
    assert (job["retries"], retried["low_memory"]) == (0, False)
    assert client.post(path, json={"from_stage": "train"}, headers=headers).json() == retried
    assert client.post(path, json={}, headers=headers).json()["code"] == "idempotency_key_reused"
    claim = hands.claim()
    assert (claim.retry_from, claim.request_id) == ("train", "second-try")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"from_stage": null}'])
def test_retry_takes_no_fields_as_well(client: httpx.Client, submit: Submit, body: bytes) -> None:
    path = submit()["links"]["self"]
    client.post(f"{path}/cancel")
    assert client.post(f"{path}/retry", content=body).status_code == 202


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({"from_stage": "publish"}, 422, "/from_stage"),
        ({"from_stage": "../train"}, 422, "/from_stage"),
        ({"from_stage": ["train"]}, 422, "/from_stage"),
        ({"stage": "train"}, 422, "/stage"),
        ([], 422, ""),
    ],
)
def test_retry_names_the_field_that_is_wrong(
    client: httpx.Client, submit: Submit, body: object, status: int, pointer: str
) -> None:
    path = submit()["links"]["self"]
    client.post(f"{path}/cancel")
    response = client.post(f"{path}/retry", json=body)
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (status, pointer)
    assert "../train" not in response.text
    assert client.get(path).json()["status"] == "cancelled"
