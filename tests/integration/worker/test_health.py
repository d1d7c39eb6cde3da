"""The worker's health command, asked of a real database."""

import socket
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import func, update

from jobs.job.overview import Overview
from jobs.repository.models import Job
from tests.integration.worker.conftest import Office
from worker.health import main, trouble


def beat(office: Office, hostname: str) -> None:
    office.leases.beat_worker(f"{hostname}:1", hostname=hostname, pid=1, device="cpu")


def let_wait(office: Office, *, delayed_by: float = 0.0) -> None:
    """What is queued has been for a while; it may be taken only after ``delayed_by`` seconds."""
    now = func.clock_timestamp()
    ago = now - timedelta(seconds=90)
    available = now + timedelta(seconds=delayed_by) if delayed_by else ago
    with office.database.transaction() as session:
        session.execute(update(Job).where(Job.status == "queued").values(queued_at=ago, available_at=available))


def test_a_worker_of_this_machine_must_have_reported(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    beat(office, "another-machine")
    assert main(office.settings) == 1
    assert "has reported lately" in capsys.readouterr().err
    beat(office, socket.gethostname())
    assert main(office.settings) == 0
    assert capsys.readouterr().err == ""


def test_a_worker_that_takes_nothing_is_not_healthy(office: Office) -> None:
    overview = Overview(office.database, office.settings)
    beat(office, "here")
    soon, later = datetime.now(UTC), datetime.now(UTC) + timedelta(minutes=2)
    assert trouble(overview, "here", later) is None
    office.submit("succeed")
    assert trouble(overview, "here", later) is None, "the job is new"
    let_wait(office)
    assert trouble(overview, "here", soon) is None, "the worker is new"
    assert "1 jobs wait" in str(trouble(overview, "here", later))
    assert office.leases.claim("here:1") is not None
    assert trouble(overview, "here", later) is None


def test_only_a_worker_that_works_or_takes_jobs_is_healthy_where_jobs_wait(office: Office) -> None:
    overview = Overview(office.database, office.settings)
    later = datetime.now(UTC) + timedelta(hours=3)
    for host in ("busy", "idle"):
        beat(office, host)
    for _ in range(2):
        office.submit("succeed")
    assert office.leases.claim("busy:1") is not None
    let_wait(office)
    assert trouble(overview, "busy", later) is None, "its job takes hours"
    assert "1 jobs wait" in str(trouble(overview, "idle", later))
    let_wait(office, delayed_by=3600)
    assert trouble(overview, "idle", later) is None, "a job that waits for its next attempt is nobody's fault"


def test_a_database_that_is_away_is_told(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    away = SecretStr("postgresql://nobody@127.0.0.1:1/nothing")
    assert main(office.settings.model_copy(update={"database_url": away})) == 1
    assert "The database does not answer" in capsys.readouterr().err
