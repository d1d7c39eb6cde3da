"""The protocol: one claimer per job, fenced writes, one published effect, poison jobs stop."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select

from jobs.job.lease import Claim, JobLeases, Manifest, ProgressReport
from jobs.kit.errors import ArtifactNotFound, JobProblem
from jobs.kit.states import StageStatus
from jobs.repository.models import Job
from tests.integration.jobs.conftest import TENANT, House, layer

PROBLEM = JobProblem(code="unsafe_checkpoint", category="user", detail="Corrupt.", hint="Fetch it again.")


def manifest(house: House, claim: Claim, **summary: Any) -> Manifest:
    output = house.settings.work_dir / claim.job_id / "output"
    (output / "checkpoint").mkdir(parents=True, exist_ok=True)
    (output / "checkpoint" / "config.json").write_text("{}")
    (output / "report.json").write_text("{}")
    return Manifest(
        summary={"full_mean_error": 1.5, **summary},
        report={"layers": []},
        layers=[layer()],
        artifacts=house.store.put(output),
    )


def event_types(house: House, job_id: str) -> list[str]:
    return [event.type for event in house.queries.list_events(job_id, tenant=TENANT, limit=1000).data]


def test_nothing_to_claim_in_an_empty_queue(house: House) -> None:
    assert house.leases.claim("w1") is None


def test_the_oldest_job_is_claimed_first_with_its_specification(house: House) -> None:
    first, second = house.submit(), house.submit(metadata={"n": "2"})
    claim = house.claim()
    assert (claim.job_id, claim.fence, claim.attempt) == (first, 1, 1)
    assert claim.request.calibration.dataset == "books"
    assert claim.request.policy.training is not None
    assert house.claim("w2").job_id == second
    row = house.row(first)
    assert (row.status, row.owner) == ("running", "w1")
    assert row.started_at is not None


def test_many_claimers_never_get_the_same_job(house: House) -> None:
    jobs = {house.submit() for _ in range(40)}

    def drain(owner: str) -> list[str]:
        taken = []
        while (claim := house.leases.claim(owner)) is not None:
            taken.append(claim.job_id)
        return taken

    with ThreadPoolExecutor(8) as pool:
        taken = [job for got in pool.map(drain, [f"w{n}" for n in range(8)]) for job in got]
    # SKIP LOCKED may make a claimer see an empty queue while the last rows are being taken; none is taken twice.
    assert len(taken) == len(set(taken))
    while (claim := house.leases.claim("last")) is not None:
        taken.append(claim.job_id)
    assert sorted(taken) == sorted(jobs)


def test_a_heartbeat_renews_the_lease_by_the_databases_clock(house: House) -> None:
    job = house.submit()
    claim = house.claim()
    house.shift(job, "lease_until", 1)
    assert house.leases.heartbeat(claim).ok
    with house.database.transaction() as session:
        left = session.scalars(
            select(func.extract("epoch", Job.lease_until - func.clock_timestamp())).where(Job.id == job)
        ).one()
    assert 28 < left <= 30


def test_progress_stages_layers_and_events_are_recorded(house: House) -> None:
    job = house.submit()
    claim = house.claim()
    leases = house.leases
    assert leases.record_resolved_revision(claim, "abc123")
    assert leases.record_stage(claim, "calibrate", StageStatus.RUNNING)
    assert leases.record_stage(claim, "calibrate", StageStatus.SUCCEEDED, 12.1)
    assert leases.record_stage(claim, "search", StageStatus.RUNNING)
    assert leases.record_progress(
        claim,
        ProgressReport(fraction=0.41, stage="search", unit="layer", done=13, total=30, eta_p50=126.0, eta_p90=170.0),
    )
    assert leases.record_layers(claim, [layer(error=2.0), layer("b", error=math.nan)])
    assert leases.record_layers(claim, [layer(error=3.0)])
    assert leases.append_event(claim, "log", {"message": "nul \x00 and \ud800", "value": math.inf})

    shown = house.queries.get_job(job, tenant=TENANT).model_dump(mode="json")
    assert shown["model"]["resolved_revision"] == "abc123"
    assert shown["stages"] == [
        {"name": "calibrate", "status": "succeeded", "seconds": 12.1},
        {"name": "search", "status": "running", "seconds": None},
    ]
    progress = shown["progress"]
    assert progress["eta_seconds"] == {"p50": 126.0, "p90": 170.0}
    assert (progress["fraction"], progress["stage"], progress["done"], progress["total"]) == (0.41, "search", 13, 30)
    layers = house.queries.list_layers(job, tenant=TENANT).data
    assert [(row.name, row.error) for row in layers] == [("b", None), ("model.layers.0.mlp.down_proj", 3.0)]

    events = house.queries.list_events(job, tenant=TENANT).data
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert [event.type for event in events] == [
        "job.status",
        "job.status",
        "stage.status",
        "stage.status",
        "stage.status",
        "progress",
        "layer.completed",
        "layer.completed",
        "layer.completed",
        "log",
    ]
    assert events[1].data == {"status": "running", "attempt": 1}
    assert events[-1].data == {"message": "nul  and ?", "value": None}


def test_every_change_bumps_the_version(house: House) -> None:
    job = house.submit()
    versions = [house.row(job).version]
    claim = house.claim()
    versions.append(house.row(job).version)
    for write in (
        lambda: house.leases.heartbeat(claim),
        lambda: house.leases.record_progress(claim, ProgressReport(fraction=0.1, stage="load")),
        lambda: house.leases.record_stage(claim, "load", StageStatus.RUNNING),
        lambda: house.leases.record_layers(claim, [layer()]),
        lambda: house.commands.cancel_job(job, tenant=TENANT),
        lambda: house.leases.cancelled(claim),
    ):
        write()
        versions.append(house.row(job).version)
    assert versions == list(range(1, len(versions) + 1))


def test_publishing_makes_everything_visible_at_once(house: House) -> None:
    job = house.submit()
    claim = house.claim()
    house.leases.record_layers(claim, [layer("left over by an earlier attempt")])
    assert house.leases.publish(claim, manifest(house, claim, broken=math.nan))

    shown = house.queries.get_job(job, tenant=TENANT)
    assert (shown.status, shown.is_terminal, shown.progress.fraction) == ("succeeded", True, 1.0)
    assert shown.finished_at is not None
    assert shown.summary == {"full_mean_error": 1.5, "broken": None}
    assert house.queries.get_report(job, tenant=TENANT) == {"layers": []}
    assert [row.name for row in house.queries.list_layers(job, tenant=TENANT).data] == ["model.layers.0.mlp.down_proj"]
    artifacts = house.queries.list_artifacts(job, tenant=TENANT).data
    assert [artifact.path for artifact in artifacts] == ["checkpoint/config.json", "report.json"]
    opened = house.queries.open_artifact(artifacts[0].id, tenant=TENANT)
    assert b"".join(opened.read()) == b"{}"
    assert opened.view.name == "config.json"
    assert [file.view.path for file in house.queries.archive_files(job, tenant=TENANT)] == ["checkpoint/config.json"]
    assert event_types(house, job)[-2:] == ["job.status", "done"]


def test_a_stale_fence_changes_no_row(house: House) -> None:
    job = house.submit()
    stale = house.claim("frozen")
    house.expire(job)
    assert house.leases.sweep().requeued == 1
    fresh = house.claim("next")
    assert fresh.fence == stale.fence + 1
    before, events_before = house.row(job), event_types(house, job)

    leases = house.leases
    assert not leases.heartbeat(stale).ok
    assert not leases.record_resolved_revision(stale, "abc")
    assert not leases.record_progress(stale, ProgressReport(fraction=0.9, stage="train"))
    assert not leases.record_stage(stale, "train", StageStatus.SUCCEEDED, 1.0)
    assert not leases.record_layers(stale, [layer()])
    assert not leases.append_event(stale, "log", {"message": "I am back"})
    assert not leases.publish(stale, manifest(house, stale))
    assert not leases.fail(stale, PROBLEM)
    assert not leases.release(stale, "crash")
    assert not leases.cancelled(stale)

    after = house.row(job)
    columns = [column.key for column in Job.__table__.columns if column.key not in {"spec", "report", "metadata"}]
    assert [getattr(after, column) for column in columns] == [getattr(before, column) for column in columns]
    assert event_types(house, job) == events_before
    assert not house.queries.list_artifacts(job, tenant=TENANT).data
    assert not house.queries.list_layers(job, tenant=TENANT).data

    assert leases.publish(fresh, manifest(house, fresh))
    assert not leases.publish(fresh, manifest(house, fresh))
    assert len(house.queries.list_artifacts(job, tenant=TENANT).data) == 2


def test_a_poison_job_stops_after_exactly_max_attempts(house: House) -> None:
    poison = house.submit()
    attempts = 0
    while (claim := house.leases.claim("w1")) is not None:
        attempts += 1
        assert claim.attempt == attempts
        assert house.leases.release(claim, "crash")
    assert attempts == house.settings.max_attempts
    shown = house.queries.get_job(poison, tenant=TENANT)
    assert shown.status == "failed"
    assert shown.error is not None
    assert shown.error["code"] == "crash_loop"
    assert shown.error["category"] == "platform"
    assert shown.error["hint"]
    other = house.submit()
    assert house.claim().job_id == other


def test_a_worker_that_vanishes_every_time_is_a_crash_loop_too(house: House) -> None:
    job = house.submit()
    attempts = 0
    while house.leases.claim("w1") is not None:
        attempts += 1
        house.expire(job)
        house.leases.sweep()
    assert attempts == house.settings.max_attempts
    error = house.row(job).error
    assert error is not None
    assert error["code"] == "crash_loop"


def test_a_crash_waits_before_the_next_attempt(house: House) -> None:
    settings = house.settings.model_copy(update={"retry_delay_seconds": 300.0})
    leases = JobLeases(house.database, settings)
    job = house.submit()
    assert leases.release(house.claim(), "crash")
    assert leases.claim("w1") is None
    house.shift(job, "available_at", -1)
    assert house.claim().attempt == 2


def test_a_drain_does_not_count_the_attempt(house: House) -> None:
    job = house.submit()
    for _ in range(house.settings.max_attempts + 2):
        claim = house.claim()
        assert claim.attempt == 1
        assert house.leases.release(claim, "drain")
    assert house.status(job) == "queued"
    assert claim.fence == house.settings.max_attempts + 2


def test_a_failure_is_shown_with_category_and_hint(house: House) -> None:
    job = house.submit()
    claim = house.claim()
    assert house.leases.fail(claim, PROBLEM)
    assert not house.leases.fail(claim, PROBLEM)
    assert house.queries.get_job(job, tenant=TENANT).error == {
        "type": "urn:quantry:problem:unsafe_checkpoint",
        "title": "Unsafe checkpoint",
        "status": 422,
        "detail": "Corrupt.",
        "instance": f"/v1/jobs/{job}",
        "code": "unsafe_checkpoint",
        "category": "user",
        "hint": "Fetch it again.",
    }
    assert event_types(house, job)[-2:] == ["job.status", "done"]


def test_a_layer_row_without_its_columns_is_refused_before_the_database(house: House) -> None:
    house.submit()
    claim = house.claim()
    with pytest.raises(ValueError, match="block"):
        house.leases.record_layers(claim, [{"name": "x"}])


def test_an_artifact_whose_file_is_gone_is_not_found(house: House) -> None:
    job = house.submit()
    claim = house.claim()
    assert house.leases.publish(claim, manifest(house, claim))
    artifact = house.queries.list_artifacts(job, tenant=TENANT).data[0]
    assert house.store.delete(artifact.sha256)
    file = house.queries.open_artifact(artifact.id, tenant=TENANT)
    for ask in (file.require, file.read, lambda: house.queries.archive_files(job, tenant=TENANT)):
        with pytest.raises(ArtifactNotFound):
            ask()
