"""The use cases of the API side."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from jobs.job.commands import JobCommands
from jobs.kit.errors import (
    ArtifactNotFound,
    DatasetNotFound,
    IdempotencyConflict,
    IdempotencyInFlight,
    InvalidPolicy,
    InvalidQuery,
    InvalidRequest,
    InvalidState,
    JobNotFound,
    ModelNotFound,
    QuantryError,
    ReportNotFound,
    Unavailable,
)
from jobs.kit.states import JobStatus
from jobs.repository import idempotency
from jobs.repository.database import Database
from jobs.repository.models import IdempotencyKey, Job
from quant_engine.policy import JobRequest
from tests.integration.jobs.conftest import TENANT, House, layer, request
from tests.integration.jobs.test_cancel import EMPTY

HUB = {"source": "hub", "id": "owner/name"}


def count_jobs(house: House) -> int:
    with house.database.transaction() as session:
        return session.scalars(select(func.count()).select_from(Job)).one()


def test_a_new_job_is_stored_fully_resolved_and_shown_as_the_contract_says(house: House) -> None:
    view, created = house.commands.create_job(request(metadata={"team": "search"}), tenant=TENANT)
    assert created
    assert house.nudger.nudges == 1
    shown = view.model_dump(mode="json")
    assert shown["created_at"].endswith("Z")
    assert {key: shown[key] for key in ("object", "status", "is_terminal", "attempt", "started_at", "finished_at")} == {
        "object": "quantization.job",
        "status": "queued",
        "is_terminal": False,
        "attempt": 0,
        "started_at": None,
        "finished_at": None,
    }
    assert shown["model"] == {"source": "local", "id": "tiny", "revision": "main", "resolved_revision": None}
    assert shown["policy"]["training"]["steps"] == 800
    assert shown["policy_hash"].startswith("sha256:")
    assert shown["calibration"]["dataset"] == "books"
    assert shown["evaluation"]["perplexity"]["dataset"] == "pydoc"
    assert shown["metadata"] == {"team": "search"}
    assert shown["progress"] == {
        "fraction": 0.0,
        "stage": None,
        "unit": None,
        "done": None,
        "total": None,
        "eta_seconds": None,
        "queue_position": 1,
        "heartbeat_at": None,
    }
    assert (shown["stages"], shown["summary"], shown["error"]) == ([], None, None)
    assert shown["links"]["self"] == f"/v1/jobs/{view.id}"
    assert "version" not in shown
    assert house.queries.get_job(view.id, tenant=TENANT) == view

    spec = JobRequest.model_validate(house.claim().spec)
    assert spec.policy.model_dump(mode="json") == shown["policy"]
    assert spec.metadata == {"team": "search"}


def test_inline_texts_are_stored_for_the_worker_but_only_counted_in_the_view(house: House) -> None:
    inline = {"dataset": {"texts": ["one", "two"]}}
    # Of a Hub model nothing is known yet, so its texts are not counted.
    wanted = request(model=HUB, calibration=inline, evaluation={"perplexity": inline})
    view, _ = house.commands.create_job(wanted, tenant=TENANT)
    assert view.calibration["dataset"] == {"inline_texts": 2}
    assert view.evaluation["perplexity"]["dataset"] == {"inline_texts": 2}
    assert house.claim().spec["calibration"] == {**view.calibration, "dataset": {"texts": ["one", "two"]}}


def test_inline_messages_are_counted_and_a_data_set_of_the_hub_is_shown(house: House) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
    hub = {"hub": "owner/name", "config": None, "split": "train_sft", "revision": "main", "column": "prompt"}
    view, _ = house.commands.create_job(
        request(model=HUB, calibration={"dataset": {"messages": [talk]}}, evaluation={"perplexity": {"dataset": hub}}),
        tenant=TENANT,
    )
    assert view.calibration["dataset"] == {"inline_messages": 1}
    assert view.evaluation["perplexity"]["dataset"] == hub
    assert house.claim().request.calibration.model_dump(mode="json")["dataset"] == {"messages": [talk]}


@pytest.mark.parametrize(
    ("fields", "error", "pointer", "code"),
    [
        ({"policy": {"preset": "nonsense"}}, InvalidPolicy, "/policy/preset", "unknown_preset"),
        (
            {"policy": {"transform": {"kind": "rotation"}, "training": {"steps": 5}}},
            InvalidPolicy,
            "/policy/training",
            "transform_without_scales",
        ),
        ({"model": {"source": "local", "id": "absent"}}, ModelNotFound, "/model/id", "model_not_found"),
        ({"model": {"source": "local", "id": "outside"}}, ModelNotFound, "/model/id", "model_not_found"),
        ({"calibration": {"dataset": "absent"}}, DatasetNotFound, "/calibration/dataset", "dataset_not_found"),
        (
            {"evaluation": {"perplexity": {"dataset": "self"}}},
            DatasetNotFound,
            "/evaluation/perplexity/dataset",
            "dataset_not_found",
        ),
    ],
)
def test_what_can_not_be_done_is_refused_with_its_place_and_leaves_no_job(
    house: House, fields: dict[str, Any], error: type[QuantryError], pointer: str, code: str
) -> None:
    elsewhere = house.settings.data_dir / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text("{}")
    (house.settings.models_dir / "outside").symlink_to(elsewhere)
    with pytest.raises(error) as refused:
        house.commands.create_job(request(**fields), tenant=TENANT)
    assert refused.value.status == 422
    assert [(place.pointer, place.code) for place in refused.value.errors] == [(pointer, code)]
    assert count_jobs(house) == 0
    assert house.nudger.nudges == 0


def test_names_of_datasets_come_from_the_operators_directory(house: House) -> None:
    calibration = house.submit(calibration={"dataset": "books"}, evaluation={"perplexity": None})
    assert house.queries.get_job(calibration, tenant=TENANT).evaluation == {"perplexity": None}
    with pytest.raises(DatasetNotFound, match="pydoc"):
        house.submit(evaluation={"perplexity": {"dataset": "books"}})
    house.submit(calibration={"dataset": "self"})


def test_a_hub_model_is_accepted_unseen(house: House) -> None:
    view, _ = house.commands.create_job(
        JobRequest.model_validate(
            {"model": {"id": "HuggingFaceTB/SmolLM2-135M"}, "policy": {"preset": "trainable-smoothrot-w4a4"}}
        ),
        tenant=TENANT,
    )
    assert view.model.source == "hub"


def test_fifty_posts_with_one_key_make_one_job(house: House) -> None:
    def post(_: int) -> str | None:
        try:
            return house.commands.create_job(request(), tenant=TENANT, idempotency_key="k")[0].id
        except IdempotencyInFlight:
            return None

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(post, range(50)))
    assert len({answer for answer in answers if answer is not None}) == 1
    assert count_jobs(house) == 1
    assert house.nudger.nudges == 1


def test_a_repeated_post_gets_the_first_answer_even_when_the_job_moved_on(house: House) -> None:
    first, created = house.commands.create_job(request(), tenant=TENANT, idempotency_key="k")
    house.commands.cancel_job(first.id, tenant=TENANT)
    house.commands.delete_job(first.id, tenant=TENANT)
    again, created_again = house.commands.create_job(request(), tenant=TENANT, idempotency_key="k")
    assert (created, created_again) == (True, False)
    assert again.model_dump(mode="json") == first.model_dump(mode="json")
    assert again.etag == first.etag


def test_a_key_belongs_to_one_body_one_tenant_and_one_day(house: House) -> None:
    first, _ = house.commands.create_job(request(), tenant=TENANT, idempotency_key="k")
    with pytest.raises(IdempotencyConflict) as conflict:
        house.commands.create_job(request(metadata={"a": "b"}), tenant=TENANT, idempotency_key="k")
    assert (conflict.value.status, conflict.value.code) == (422, "idempotency_key_reused")
    other, created = house.commands.create_job(request(), tenant="another", idempotency_key="k")
    assert created
    assert other.id != first.id
    with house.database.transaction() as session:
        session.execute(update(IdempotencyKey).values(expires_at=func.clock_timestamp() - timedelta(seconds=1)))
    fresh, created = house.commands.create_job(request(metadata={"a": "b"}), tenant=TENANT, idempotency_key="k")
    assert created
    assert fresh.id != first.id


def test_a_key_in_flight_is_told_to_wait(house: House) -> None:
    with house.database.transaction() as session:
        assert idempotency.try_lock(session, TENANT, "POST /v1/jobs", "k")
        with pytest.raises(IdempotencyInFlight) as in_flight:
            house.commands.create_job(request(), tenant=TENANT, idempotency_key="k")
    assert (in_flight.value.status, in_flight.value.headers["Retry-After"]) == (409, "1")
    assert house.commands.create_job(request(), tenant=TENANT, idempotency_key="k")[1]


def test_a_refused_post_does_not_use_its_key_up(house: House) -> None:
    with pytest.raises(ModelNotFound):
        house.commands.create_job(request(model={"source": "local", "id": "x"}), tenant=TENANT, idempotency_key="k")
    assert house.commands.create_job(request(), tenant=TENANT, idempotency_key="k")[1]


@pytest.mark.parametrize("key", ["", "x" * 256, "line\nbreak", "nul\x00", "ü"])
def test_an_unusable_key_is_refused(house: House, key: str) -> None:
    with pytest.raises(InvalidRequest, match="printable"):
        house.commands.create_job(request(), tenant=TENANT, idempotency_key=key)


def test_a_cancel_can_be_repeated_with_its_key(house: House) -> None:
    job = house.submit()
    first = house.commands.cancel_job(job, tenant=TENANT, idempotency_key="k")
    again = house.commands.cancel_job(job, tenant=TENANT, idempotency_key="k")
    assert again.model_dump(mode="json") == first.model_dump(mode="json")
    with pytest.raises(InvalidState):
        house.commands.cancel_job(job, tenant=TENANT, idempotency_key="k2")


def test_pages_are_stable_while_jobs_arrive_and_leave(house: House) -> None:
    jobs = [house.submit() for _ in range(7)]
    seen, after = [], None
    while True:
        page = house.queries.list_jobs(tenant=TENANT, limit=3, after=after)
        seen += [job.id for job in page.data]
        if not page.has_more:
            break
        assert page.next_cursor is not None
        after = page.next_cursor
        house.submit(metadata={"late": "yes"})
        house.commands.cancel_job(page.data[-1].id, tenant=TENANT)
        house.commands.delete_job(page.data[-1].id, tenant=TENANT)
    assert page.next_cursor is None
    assert seen == jobs[::-1]


def test_pages_split_jobs_of_the_same_moment_by_id(house: House) -> None:
    jobs = [house.submit() for _ in range(5)]
    with house.database.transaction() as session:
        session.execute(update(Job).values(created_at=func.now()))
    first = house.queries.list_jobs(tenant=TENANT, limit=2)
    second = house.queries.list_jobs(tenant=TENANT, limit=9, after=first.next_cursor)
    assert [job.id for job in (*first.data, *second.data)] == sorted(jobs, reverse=True)


def test_lists_can_be_filtered(house: House) -> None:
    red = house.submit(metadata={"color": "red", "size": "s"})
    blue = house.submit(metadata={"color": "blue"})
    house.commands.cancel_job(blue, tenant=TENANT)

    def ids(**filters: Any) -> list[str]:
        return [job.id for job in house.queries.list_jobs(tenant=TENANT, **filters).data]

    assert ids(metadata={"color": "red"}) == [red]
    assert ids(metadata={"color": "red", "size": "m"}) == []
    assert ids(status=JobStatus.CANCELLED) == [blue]
    assert ids(model="tiny") == [blue, red]
    assert ids(model="other") == []
    assert house.queries.list_jobs(tenant="another").data == ()


FOREIGN_CURSORS = [
    "",
    "x",
    "é",
    "bnVsbA",  # null
    "WzEsMl0",  # [1,2]
    "WyIyMDI2IiwiYSJd",  # ["2026","a"]
    "WyIyMDI2LTAxLTAxVDAwOjAwOjAwKzAwOjAwIiwiXHUwMDAwIl0",  # a NUL for an id
    "WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwiYSJd",  # before the year 1
    "W" * 100_000,
]


@pytest.mark.parametrize("cursor", FOREIGN_CURSORS, ids=range(len(FOREIGN_CURSORS)))
def test_a_foreign_cursor_is_refused(house: House, cursor: str) -> None:
    with pytest.raises(InvalidQuery) as refused:
        house.queries.list_jobs(tenant=TENANT, after=cursor)
    assert refused.value.errors[0].pointer == "?after"


@pytest.mark.parametrize("text", ["nul\x00", "\ud800"])
def test_text_that_can_not_be_stored_never_reaches_the_database(house: House, text: str) -> None:
    with pytest.raises(InvalidQuery):
        house.queries.list_jobs(tenant=TENANT, model=text)
    with pytest.raises(InvalidQuery):
        house.queries.list_jobs(tenant=TENANT, metadata={"k": text})
    with pytest.raises(InvalidQuery):
        house.queries.list_jobs(tenant=TENANT, metadata={text: "v"})
    with pytest.raises(ValueError, match="must"):
        request(metadata={"k": text})
    for look_up in (house.queries.get_job, house.queries.get_report, house.commands.delete_job):
        with pytest.raises(JobNotFound):
            look_up(text, tenant=TENANT)
    with pytest.raises(ArtifactNotFound):
        house.queries.open_artifact(text, tenant=TENANT)


def test_the_queue_position_moves_and_with_it_the_etag(house: House) -> None:
    house.submit()
    second = house.submit()
    before = house.queries.get_job(second, tenant=TENANT)
    assert before.progress.queue_position == 2
    claim = house.claim()
    after = house.queries.get_job(second, tenant=TENANT)
    assert after.progress.queue_position == 1
    assert after.etag != before.etag
    assert house.queries.get_job(claim.job_id, tenant=TENANT).progress.queue_position is None


def test_events_come_in_pages_after_an_id(house: House) -> None:
    job = house.submit()
    claim = house.claim()
    for number in range(5):
        house.leases.append_event(claim, "log", {"n": number})
    first = house.queries.list_events(job, tenant=TENANT, limit=3)
    assert [event.id for event in first.data] == [1, 2, 3]
    assert (first.has_more, first.next_cursor) == (True, "3")
    rest = house.queries.list_events(job, tenant=TENANT, after=3)
    assert [event.id for event in rest.data] == [4, 5, 6, 7]
    assert not rest.has_more
    assert house.queries.list_events(job, tenant=TENANT, after=2**80).data == ()
    with pytest.raises(JobNotFound):
        house.queries.list_events(job, tenant="another")


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("error", ["a", "b", "c", "d", "x", "y"]),
        ("-error", ["d", "b", "c", "a", "x", "y"]),
        ("+error", ["a", "b", "c", "d", "x", "y"]),
        ("block", ["d", "a", "b", "c", "x", "y"]),
        ("-bytes", ["a", "b", "c", "d", "x", "y"]),
    ],
)
def test_layers_are_sorted_with_missing_values_last_and_paged(
    house: House, sort: str, expected: list[str], limit: int
) -> None:
    job = house.submit()
    claim = house.claim()
    rows = [("a", 1.0, 1), ("b", 2.5, 2), ("c", 2.5, 3), ("d", 4.0, 0), ("x", None, 9), ("y", None, 9)]
    house.leases.record_layers(claim, [layer(name, error=error, block=block) for name, error, block in rows])
    names: list[str] = []
    after = None
    while True:
        page = house.queries.list_layers(job, tenant=TENANT, sort=sort, limit=limit, after=after)
        names += [row.name for row in page.data]
        after = page.next_cursor
        if not page.has_more:
            break
    assert names == expected


@pytest.mark.parametrize("sort", ["name", "job_id", "", "--error", "error; DROP TABLE jobs", "selected"])
def test_layers_are_sorted_by_numbers_only(house: House, sort: str) -> None:
    job = house.submit()
    with pytest.raises(InvalidQuery, match="numeric"):
        house.queries.list_layers(job, tenant=TENANT, sort=sort)


def test_a_layer_cursor_belongs_to_its_order(house: House) -> None:
    job = house.submit()
    house.leases.record_layers(house.claim(), [layer("a"), layer("b")])
    cursor = house.queries.list_layers(job, tenant=TENANT, sort="error", limit=1).next_cursor
    with pytest.raises(InvalidQuery):
        house.queries.list_layers(job, tenant=TENANT, sort="-error", limit=1, after=cursor)


def test_a_report_comes_with_success(house: House) -> None:
    job = house.submit()
    with pytest.raises(ReportNotFound) as early:
        house.queries.get_report(job, tenant=TENANT)
    assert "Retry-After" in early.value.headers
    house.commands.cancel_job(job, tenant=TENANT)
    with pytest.raises(ReportNotFound) as never:
        house.queries.get_report(job, tenant=TENANT)
    assert "Retry-After" not in never.value.headers


def test_only_a_job_that_is_over_can_be_deleted_and_its_files_go_too(house: House) -> None:
    job = house.submit()
    claim = house.claim()
    older = house.settings.artifacts_dir / job / str(claim.fence)
    older.mkdir(parents=True)
    (older / "report.json").write_text("{}")
    work = house.settings.work_dir / job
    work.mkdir(parents=True)
    with pytest.raises(InvalidState) as refused:
        house.commands.delete_job(job, tenant=TENANT)
    assert "Retry-After" in refused.value.headers
    assert house.leases.publish(claim, EMPTY)
    with pytest.raises(JobNotFound):
        house.commands.delete_job(job, tenant="another")
    house.commands.delete_job(job, tenant=TENANT)
    with pytest.raises(JobNotFound):
        house.queries.get_job(job, tenant=TENANT)
    assert not work.exists()
    assert not older.parent.exists()
    assert not (house.store.root / job).exists()
    assert not house.leases.heartbeat(claim).ok


def test_a_database_that_does_not_answer_is_unavailable(house: House) -> None:
    nowhere = JobCommands(Database("postgresql://quantry@127.0.0.1:1/none"), house.settings, house.store, house.nudger)
    with pytest.raises(Unavailable) as unavailable:
        nowhere.create_job(request(), tenant=TENANT)
    assert unavailable.value.status == 503
    assert "Retry-After" in unavailable.value.headers
    assert house.nudger.nudges == 0
