"""The sweeper's rounds on a real database."""

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from jobs.job.lease import JobLeases, Swept
from jobs.kit.errors import Unavailable
from jobs.kit.leases import ClaimKey
from tests.integration.worker.conftest import Office, eventually
from worker.attempts.workspace import open_workspace
from worker.sweeper.garbage import BackgroundCollector
from worker.sweeper.sweeper import Sweeper


@dataclass
class CountingNudger:
    """A nudger that only counts."""

    nudges: int = 0

    def nudge(self) -> None:
        self.nudges += 1


def sweeper_of(office: Office, nudger: CountingNudger) -> Sweeper:
    return Sweeper(office.leases, nudger, office.settings, owner="host:1", worker_pid=1)


def open_work(office: Office, job_id: str) -> Path:
    """A work directory that nobody has touched for an hour."""
    space = open_workspace(office.settings.work_dir, job_id, 1)
    long_ago = time.time() - 3600
    os.utime(office.work(job_id), (long_ago, long_ago))
    return space.root


def expire(office: Office, job_id: str, **columns: int) -> None:
    values = "".join(f", {name} = {value}" for name, value in columns.items())
    with office.database.transaction() as session:
        session.execute(
            text(f"UPDATE jobs SET lease_until = now() - interval '1 s'{values} WHERE id = :id"),  # noqa: S608 — ours
            {"id": job_id},
        )


def test_an_expired_lease_is_queued_again_with_its_work_kept_and_a_nudge(office: Office) -> None:
    job_id = office.submit("succeed")
    assert office.leases.claim("dead:1") is not None
    work = open_work(office, job_id)
    expire(office, job_id)
    nudger = CountingNudger()
    sweeper_of(office, nudger).sweep()
    assert (office.job(job_id).status, nudger.nudges) == ("queued", 1)
    assert work.is_dir()


def test_work_of_a_job_that_the_sweep_ended_is_removed_once_nobody_came_back_for_it(office: Office) -> None:
    job_id, running = office.submit("succeed"), office.submit("succeed")
    for _ in range(2):
        assert office.leases.claim("dead:1") is not None
    work, kept = open_work(office, job_id), open_work(office, running)
    expire(office, job_id, attempt=office.settings.max_attempts)
    sweeper_of(office, CountingNudger()).sweep()
    assert (office.job(job_id).status, office.job(running).status) == ("failed", "running")
    assert work.is_dir(), "a retry resumes from it"
    with office.database.transaction() as session:
        session.execute(
            text("UPDATE jobs SET finished_at = finished_at - interval '1 day' WHERE id = :id"), {"id": job_id}
        )
    sweeper_of(office, CountingNudger()).sweep()
    assert [path.name for path in office.settings.work_dir.iterdir()] == [running]
    assert kept.is_dir()


def test_work_of_a_job_that_nobody_knows_is_removed_once_it_is_old(office: Office) -> None:
    old = open_work(office, "job_unknown")
    fresh = open_workspace(office.settings.work_dir, "job_fresh", 1).root
    sweeper_of(office, CountingNudger()).sweep()
    assert not old.exists()
    assert fresh.is_dir()


@pytest.mark.slow
def test_a_worker_frozen_inside_a_transaction_does_not_keep_its_job(office: Office) -> None:
    job_id = office.submit("succeed")
    assert office.leases.claim("frozen:1") is not None
    expire(office, job_id)
    sweeper = sweeper_of(office, CountingNudger())
    with office.database.engine.connect() as frozen:
        frozen.execute(text("UPDATE jobs SET heartbeat_at = now() WHERE id = :id"), {"id": job_id})
        sweeper.sweep()
        assert office.job(job_id).status == "running", "its row is locked, and sweeps pass locked rows over"

        def swept() -> bool:
            sweeper.sweep()
            return office.job(job_id).status == "queued"

        eventually(swept, seconds=20)
        with pytest.raises(DBAPIError) as woken:
            frozen.execute(text("SELECT 1"))
        assert woken.value.connection_invalidated


class Faltering(JobLeases):
    """A real JobLeases on a database that is away for the first sweeps."""

    failures = 2

    def sweep(self, orphans: Collection[ClaimKey] = ()) -> Swept:
        if self.failures:
            self.failures -= 1
            raise Unavailable
        return super().sweep(orphans)


def test_sweeping_goes_on_after_an_outage_with_jitter_between_rounds(office: Office) -> None:
    office.leases = Faltering(office.database, office.settings)
    office.submit("succeed")
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 6

    nudger = CountingNudger()
    sweeper_of(office, nudger).run(wait)
    assert nudger.nudges >= 1
    assert len(set(waits)) > 1
    base = office.settings.sweep_seconds
    assert all(0.75 * base <= seconds <= 1.25 * base for seconds in waits)


def test_the_sweeper_collects_garbage_once_an_hour_of_all_workers(office: Office, tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "report.json").write_text("nobody's")
    [orphan] = office.store.put(tmp_path / "output")
    blob = office.settings.artifacts_dir / "blobs" / orphan.sha256[:2] / orphan.sha256
    os.utime(blob, (0, 0))
    assert office.settings.database_url is not None
    collectors = [
        BackgroundCollector(office.settings.database_url.get_secret_value(), office.settings) for _ in range(2)
    ]
    sweeper = Sweeper(
        office.leases, CountingNudger(), office.settings, owner="host:1", worker_pid=1, collect=collectors[0].look
    )
    sweeper.sweep()
    eventually(lambda: not blob.exists())
    office.store.put(tmp_path / "output")
    os.utime(blob, (0, 0))
    for collector in collectors:
        collector.look()
        collector.stop()
    assert blob.exists(), "an hour has not passed"
