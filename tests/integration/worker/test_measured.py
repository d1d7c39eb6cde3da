"""What passes through a worker's ports is counted, and nothing about it changes."""

from datetime import timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import func, update

from jobs.job.lease import Swept
from jobs.kit.errors import Unavailable
from jobs.repository.database import Database
from jobs.repository.models import Job
from tests.integration.worker.conftest import Office
from worker.claims.measured import MeasuredJobLeases
from worker.nudge import CeleryNudger, make_celery
from worker.telemetry.measurements import ClaimLost, HeartbeatMissed, JobClaimed, Measurement, NudgeFailed, SweepDone


class Book:
    """Remembers what is measured."""

    def __init__(self) -> None:
        self.measured: list[Measurement] = []

    def __call__(self, measurement: Measurement) -> None:
        self.measured.append(measurement)

    @property
    def waits(self) -> list[float]:
        return [each.waited_seconds for each in self.measured if isinstance(each, JobClaimed)]

    @property
    def sweeps(self) -> list[Swept]:
        return [each.swept for each in self.measured if isinstance(each, SweepDone)]

    @property
    def missed(self) -> int:
        return self.measured.count(HeartbeatMissed())

    @property
    def lost(self) -> int:
        return self.measured.count(ClaimLost())

    @property
    def unsent(self) -> int:
        return self.measured.count(NudgeFailed())


def shift(office: Office, **seconds: float) -> None:
    """Set moments of every job, in seconds from now."""
    moments = {column: func.clock_timestamp() + timedelta(seconds=offset) for column, offset in seconds.items()}
    with office.database.transaction() as session:
        session.execute(update(Job).values(moments))


def test_claims_beats_and_sweeps_are_counted(office: Office) -> None:
    book = Book()
    leases = MeasuredJobLeases(office.database, office.settings, book)
    assert leases.claim("w") is None
    job_id = office.submit("succeed")
    shift(office, queued_at=-100.0, available_at=-40.0)
    claim = leases.claim("w")
    assert claim is not None
    assert claim.job_id == job_id
    [waited] = book.waits
    assert 40 <= waited < 70, "a retry's delay is no waiting"
    assert leases.heartbeat(claim).ok
    assert (book.missed, book.lost) == (0, 0)
    shift(office, lease_until=-1.0)
    assert leases.sweep().requeued == 1
    assert [swept.requeued for swept in book.sweeps] == [1]
    assert not leases.heartbeat(claim).ok
    assert (book.missed, book.lost) == (0, 1)
    away = MeasuredJobLeases(Database("postgresql://nobody@127.0.0.1:1/x"), office.settings, book)
    with pytest.raises(Unavailable):
        away.heartbeat(claim)
    assert (book.missed, book.lost) == (1, 1)


def test_a_nudge_that_the_broker_does_not_take_is_counted(office: Office) -> None:
    book = Book()
    deaf = office.settings.model_copy(update={"broker_url": SecretStr("redis://127.0.0.1:1/0")})
    with make_celery(deaf) as celery:
        CeleryNudger(celery, lambda: book(NudgeFailed())).nudge()
    assert book.unsent == 1
