"""What expires and what stays, beside publications, retries and downloads, on a real database."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from jobs.job.lease import Claim, Manifest
from jobs.kit.errors import ArtifactNotFound, ArtifactsExpired, InvalidState, JobNotFound
from jobs.kit.states import JobStatus
from jobs.publications.lease import Commit, PublicationLeases
from jobs.publications.service import PublicationService
from jobs.repository.models import Artifact, Base, IdempotencyKey, Job, JobEvent, WebhookDelivery, WebhookEndpoint
from jobs.repository.retention import Deleted
from jobs.retention.collector import Collector
from jobs.retention.expiry import RULES, Expiry, Rule
from jobs.retention.housekeeping import Housekeeping
from jobs.settings import Settings
from quant_engine.policy.request import HubTarget
from tests.integration.jobs.conftest import TENANT, House, layer, request

DAY = 86_400.0
TARGET = HubTarget(repo="somebody/model")
OFF = {"jobs": None, "jobs' files": None, "events": None}


def expire(house: House, **settings: float) -> dict[str, Deleted | None]:
    """Apply the rules with these settings; what went, by rule."""
    return applied(Expiry(database=house.database, settings=house.settings.model_copy(update=settings)))


def would_expire(house: House, **settings: float) -> dict[str, Deleted | None]:
    """What :func:`expire` would do."""
    configured = house.settings.model_copy(update=settings)
    return applied(Expiry(database=house.database, settings=configured, dry_run=True))


def applied(expiry: Expiry) -> dict[str, Deleted | None]:
    return {each.rule: each.deleted for each in expiry.run()}


def publish(house: House, claim: Claim, **files: str) -> None:
    output = house.settings.work_dir / claim.job_id / "checkpoint"
    output.mkdir(parents=True)
    for name, content in {"config": "{}", "weights": "shared", **files}.items():
        (output / name).write_text(content)
    artifacts = house.store.put(output.parent)
    assert house.leases.publish(
        claim, Manifest(summary={"a": 1}, report={"b": 2}, layers=[layer()], artifacts=artifacts)
    )


def finished(house: House, *, days: float = 2.0, **files: str) -> str:
    """A job that succeeded so long ago."""
    job = house.submit()
    publish(house, house.claim(), **files)
    house.shift(job, "finished_at", -days * DAY)
    return job


def artifact_ids(house: House, job: str) -> list[str]:
    return [each.id for each in house.queries.list_artifacts(job, tenant=TENANT).data]


def events(house: House, job: str) -> list[tuple[int, str]]:
    return [(each.id, each.type) for each in house.queries.list_events(job, tenant=TENANT, limit=1000).data]


def snapshot(house: House) -> dict[str, Any]:
    """Every row that retention could touch."""
    with house.database.transaction() as session:
        tables = ("jobs", "job_events", "job_layers", "artifacts", "publications", "idempotency_keys")
        return {name: sorted(map(str, session.execute(select(Base.metadata.tables[name])))) for name in tables}


@contextmanager
def locked(house: House, job: str, *, read: bool, key_share: bool) -> Iterator[None]:
    """Somebody else's transaction that holds the job's row."""
    with house.database.transaction() as session:
        session.execute(select(Job.id).where(Job.id == job).with_for_update(read=read, key_share=key_share))
        yield


@pytest.fixture
def publications(house: House) -> PublicationService:
    return PublicationService(house.database, house.settings)


@pytest.fixture
def leases(house: House) -> PublicationLeases:
    return PublicationLeases(house.database, house.settings)


def test_by_default_jobs_files_and_events_stay_for_ever(house: House) -> None:
    job = finished(house, days=10_000)
    before = snapshot(house)
    assert OFF.items() <= expire(house).items()
    assert snapshot(house) == before
    assert house.row(job).expired_at is None


def test_files_of_old_jobs_expire_and_the_rest_of_the_job_stays(house: House) -> None:
    old, young, running = finished(house, days=2), finished(house, days=0.5), house.submit()
    house.claim()
    ids, version = artifact_ids(house, old), house.queries.get_job(old, tenant=TENANT).version
    assert expire(house, retention_artifacts_seconds=DAY)["jobs' files"] == Deleted(1, len("{}shared"))
    view = house.queries.get_job(old, tenant=TENANT)
    assert view.expired_at is not None
    assert view.version == version + 1, "or a client that has it cached never hears of it"
    assert (view.status, view.summary) == (JobStatus.SUCCEEDED, {"a": 1})
    assert house.queries.get_report(old, tenant=TENANT) == {"b": 2}
    assert len(house.queries.list_layers(old, tenant=TENANT).data) == 1
    assert artifact_ids(house, old) == ids, "a record of what there was, with its digests"
    for artifact in ids:
        with pytest.raises(ArtifactsExpired, match="Submit the job again"):
            house.queries.open_artifact(artifact, tenant=TENANT)
        with pytest.raises(ArtifactNotFound):
            house.queries.open_artifact(artifact, tenant="another")
    with pytest.raises(ArtifactsExpired):
        house.queries.archive_files(old, tenant=TENANT)
    assert house.queries.get_job(young, tenant=TENANT).expired_at is None
    assert house.queries.get_job(running, tenant=TENANT).expired_at is None
    assert len(house.queries.archive_files(young, tenant=TENANT)) == 2
    assert expire(house, retention_artifacts_seconds=DAY)["jobs' files"] == Deleted(0), "once is enough"


def test_bytes_follow_after_the_grace_unless_a_job_that_stays_has_them(house: House) -> None:
    finished(house, days=2, own="of the old job")
    kept = finished(house, days=0.5)
    expire(house, retention_artifacts_seconds=DAY)
    patient = Collector.of(house.database, house.settings)
    assert patient.run() is not None
    assert house.store.size(sha("of the old job")) is not None, "somebody may be downloading it"
    with house.database.transaction() as session:
        session.execute(
            text("UPDATE jobs SET expired_at = expired_at - interval '2 hours' WHERE expired_at IS NOT NULL")
        )
    eager = Collector.of(house.database, house.settings.model_copy(update={"gc_grace_seconds": -60.0}))
    collected = eager.run()
    assert collected is not None
    assert (collected.blobs, collected.missing) == (1, ())
    assert house.store.size(sha("of the old job")) is None
    assert [b"".join(file.read()) for file in house.queries.archive_files(kept, tenant=TENANT)] == [b"{}", b"shared"]


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def test_a_download_that_began_ends_after_the_files_expired(house: House) -> None:
    job = finished(house, weights="x" * 1_000_000)
    [weights] = [each for each in house.queries.archive_files(job, tenant=TENANT) if each.view.name == "weights"]
    reading = weights.read()
    first = next(reading)
    expire(house, retention_artifacts_seconds=DAY)
    Collector.of(house.database, house.settings).run()
    assert len(first + b"".join(reading)) == 1_000_000
    assert b"".join(weights.read()) == b"x" * 1_000_000


def test_a_publication_that_waits_or_runs_holds_expiry_back(
    house: House, publications: PublicationService, leases: PublicationLeases
) -> None:
    job = finished(house)
    publications.create(job, TARGET, tenant=TENANT)
    both = {"retention_artifacts_seconds": DAY, "retention_jobs_seconds": DAY}
    assert would_expire(house, **both)["jobs"] == Deleted(0)
    assert expire(house, **both)["jobs"] == Deleted(0)
    claim = leases.claim("w1")
    assert claim is not None
    assert expire(house, **both)["jobs' files"] == Deleted(0)
    assert len(claim.files) == 2
    assert leases.succeed(claim, Commit("c" * 40, "https://hub"))
    assert expire(house, retention_artifacts_seconds=DAY)["jobs' files"] == Deleted(1, 8)
    assert expire(house, retention_jobs_seconds=DAY)["jobs"] == Deleted(1, 8)
    assert snapshot(house)["publications"] == []


def test_an_expired_job_is_not_published_nor_a_failed_publication_of_it_retried(
    house: House, publications: PublicationService, leases: PublicationLeases
) -> None:
    job = finished(house)
    failed = publications.create(job, TARGET, tenant=TENANT).id
    with house.database.transaction() as session:
        session.execute(text("UPDATE publications SET status = 'failed'"))
    expire(house, retention_artifacts_seconds=DAY)
    with pytest.raises(ArtifactsExpired):
        publications.create(job, TARGET, tenant=TENANT)
    with pytest.raises(ArtifactsExpired):
        publications.retry(failed, tenant=TENANT)
    assert publications.get(failed, tenant=TENANT).status == "failed"
    assert leases.claim("w1") is None


def test_expiry_and_publications_beside_each_other_never_publish_what_expired(
    house: House, publications: PublicationService
) -> None:
    found = [finished(house) for _ in range(12)]
    start = threading.Barrier(4)

    def publish_all() -> set[str]:
        start.wait()
        queued = set()
        for job in found:
            try:
                publications.create(job, TARGET, tenant=TENANT)
                queued.add(job)
            except ArtifactsExpired:
                pass
        return queued

    def expire_all() -> None:
        start.wait()
        for _ in range(5):
            expire(house, retention_artifacts_seconds=DAY)

    with ThreadPoolExecutor(4) as pool:
        publishing = [pool.submit(publish_all) for _ in range(2)]
        for each in [pool.submit(expire_all) for _ in range(2)]:
            each.result(30)
        queued = set().union(*(each.result(30) for each in publishing))
    expired = {job for job in found if house.row(job).expired_at is not None}
    assert queued | expired == set(found)
    assert not queued & expired


@pytest.mark.parametrize(("read", "key_share"), [(False, False), (False, True), (True, True)])
def test_a_row_that_somebody_has_locked_is_passed_over_at_once(house: House, read: bool, key_share: bool) -> None:
    busy, free = finished(house), finished(house)
    settings = {"retention_artifacts_seconds": DAY, "retention_events_seconds": DAY}
    with locked(house, busy, read=read, key_share=key_share):
        expire(house, **settings)
        assert house.row(busy).expired_at is None
        assert house.row(free).expired_at is not None
        assert len(events(house, busy)) > 1
        assert expire(house, retention_jobs_seconds=DAY)["jobs"] == Deleted(1, 8)
    assert expire(house, retention_jobs_seconds=DAY)["jobs"] == Deleted(1, 8)


def test_events_go_but_the_last_and_ids_go_on(house: House) -> None:
    job = house.submit()
    claim = house.claim()
    for number in range(20):
        assert house.leases.append_event(claim, "log", {"message": str(number)})
    publish(house, claim)
    other = finished(house, days=0.5)
    house.shift(job, "finished_at", -2 * DAY)
    last = house.row(job).last_event_id
    gone = expire(house, retention_events_seconds=DAY)["events"]
    assert gone == Deleted(last - 1)
    assert events(house, job) == [(last, "done")]
    assert len(events(house, other)) > 1
    assert expire(house, retention_events_seconds=DAY)["events"] == Deleted(0)


def test_a_failed_jobs_ids_do_not_restart_when_it_goes_on(house: House) -> None:
    job = house.submit()
    house.commands.cancel_job(job, tenant=TENANT)
    house.shift(job, "finished_at", -2 * DAY)
    expire(house, retention_events_seconds=DAY)
    last = house.row(job).last_event_id
    assert events(house, job) == [(last, "done")]
    house.commands.retry_job(job, tenant=TENANT)
    assert [number for number, _ in events(house, job)] == [last, last + 1]
    both = {"retention_events_seconds": DAY, "retention_jobs_seconds": DAY}
    assert expire(house, **both)["jobs"] == Deleted(0), "it is queued again"
    assert len(events(house, job)) == 2


def test_whole_jobs_go_with_all_they_have(house: House, publications: PublicationService) -> None:
    old, young, queued = finished(house), finished(house, days=0.5), house.submit()
    publications.create(old, TARGET, tenant=TENANT)
    with house.database.transaction() as session:
        session.execute(text("UPDATE publications SET status = 'failed'"))
    assert expire(house, retention_jobs_seconds=DAY)["jobs"] == Deleted(1, 8)
    with pytest.raises(JobNotFound):
        house.queries.get_job(old, tenant=TENANT)
    left = snapshot(house)
    assert len(left["jobs"]) == 2
    assert not any(old in row for rows in left.values() for row in rows)
    assert len(artifact_ids(house, young)) == 2
    assert house.status(queued) == JobStatus.QUEUED
    with pytest.raises(InvalidState):
        house.commands.delete_job(queued, tenant=TENANT)


def test_keys_and_deliveries_go_when_their_time_is_over(house: House) -> None:
    now = func.now()
    endpoint = WebhookEndpoint(id="wh_1", tenant="t", url="https://h", description="", events=[], secret=b"")
    ended = {"msg_0": None, "msg_1": now - timedelta(days=2), "msg_2": now}
    deliveries = [
        WebhookDelivery(id=name, endpoint_id="wh_1", status="pending", type="job", payload="", finished_at=moment)
        for name, moment in ended.items()
    ]
    over = {"0": now - timedelta(seconds=1), "1": now + timedelta(hours=1)}
    keys = [
        IdempotencyKey(tenant="t", endpoint="POST", key=name, request_hash="", response={}, expires_at=moment)
        for name, moment in over.items()
    ]
    with house.database.transaction() as session:
        session.add(endpoint)
        session.flush()
        session.add_all([*deliveries, *keys])
    counted = would_expire(house, webhook_retention_seconds=DAY)
    gone = expire(house, webhook_retention_seconds=DAY)
    assert counted == gone
    assert (gone["webhook deliveries"], gone["idempotency keys"]) == (Deleted(1), Deleted(1))
    with house.database.transaction() as session:
        assert set(session.scalars(select(WebhookDelivery.id))) == {"msg_0", "msg_2"}
        assert session.scalars(select(IdempotencyKey.key)).all() == ["1"]


def test_an_answer_is_kept_for_its_key_as_long_as_is_set(house: House, settings: Settings) -> None:
    commands = type(house.commands)(
        house.database, settings.model_copy(update={"idempotency_seconds": 3600.0}), house.store, house.nudger
    )
    commands.create_job(request(), tenant=TENANT, idempotency_key="once")
    with house.database.transaction() as session:
        left = func.extract("epoch", IdempotencyKey.expires_at - func.clock_timestamp())
        assert 3500 < float(session.scalars(select(left)).one()) <= 3600


def test_a_dry_run_tells_what_would_go_and_changes_nothing(house: House, tmp_path: Path) -> None:
    for _ in range(3):
        finished(house)
    finished(house, days=0.5)
    (tmp_path / "stray").mkdir()
    (tmp_path / "stray" / "file").write_text("nobody's")
    house.store.put(tmp_path / "stray")
    settings = {f"retention_{what}_seconds": DAY for what in ("jobs", "artifacts", "events")}
    before, stored = snapshot(house), list(house.store.blobs())
    configured = house.settings.model_copy(update={**settings, "gc_grace_seconds": -60.0})
    told = Housekeeping.of(house.database, configured, dry_run=True).run()
    assert snapshot(house) == before
    assert list(house.store.blobs()) == stored
    would = {each.rule: each.deleted for each in told.expired}
    assert (would["jobs"], would["jobs' files"]) == (Deleted(3, 24), Deleted(3, 24))
    assert would["events"] == Deleted(3 * (len(events(house, house.created[0])) - 1))
    assert told.collected is not None
    assert told.collected.blobs == 1
    done = Housekeeping.of(house.database, configured).run()
    assert done.expired[0].deleted == would["jobs"]


def test_batches_are_bounded_and_several_appliers_share_the_work(house: House) -> None:
    found = [finished(house) for _ in range(9)]
    small = tuple(
        Rule(name=rule.name, keep_seconds=rule.keep_seconds, remove=rule.remove, count=rule.count, batch=2)
        for rule in RULES
    )
    configured = house.settings.model_copy(update={"retention_artifacts_seconds": DAY, "retention_events_seconds": DAY})
    with house.database.transaction() as session:
        rule = next(rule for rule in small if rule.name == "events")
        assert rule.remove(session, DAY, rule.batch, None).rows == 2
        session.rollback()

    def apply(_: int) -> dict[str, Deleted | None]:
        return applied(Expiry(database=house.database, settings=configured, rules=small))

    with ThreadPoolExecutor(3) as pool:
        shares = list(pool.map(apply, range(3)))
    again = apply(0)  # what one passed over because another had it locked, and that one's batch then left
    sums = [sum(gone.rows for each in (*shares, again) if (gone := each[name])) for name in ("jobs' files", "events")]
    assert sums == [9, sum(house.row(job).last_event_id - 1 for job in found)]
    with house.database.transaction() as session:
        assert session.scalars(select(func.count()).select_from(JobEvent)).one() == 9
        assert session.scalars(select(func.count()).select_from(Artifact)).one() == 18


def test_a_stopped_expiry_does_nothing_more(house: House) -> None:
    finished(house)
    configured = house.settings.model_copy(update={"retention_jobs_seconds": DAY})
    stopped = Expiry(database=house.database, settings=configured, stopped=lambda: True).run()
    assert stopped[0].deleted == Deleted(0)
    assert len(snapshot(house)["jobs"]) == 1


def test_what_the_first_release_published_goes_after_its_job(house: House) -> None:
    job, gone = finished(house), "job_" + "0" * 24
    root = house.settings.artifacts_dir
    for each in (job, gone):
        (root / each / "1").mkdir(parents=True)
        (root / each / "1" / "report.json").write_text("{}")
    eager = house.settings.model_copy(update={"gc_grace_seconds": -60.0})
    first = Collector.of(house.database, eager).run()
    assert first is not None
    assert first.legacy == 1
    assert (root / job).is_dir()
    assert not (root / gone).exists()
    expire(house, retention_artifacts_seconds=DAY)
    second = Collector.of(house.database, eager).run()
    assert second is not None
    assert second.legacy == 1
    assert not (root / job).exists()
