"""The sweep repairs what workers leave behind, by the database's clock."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from jobs.job.lease import JobLeases
from jobs.job.sweep import MAX_NUDGES, Swept
from jobs.repository.models import IdempotencyKey, Worker
from tests.integration.jobs.conftest import TENANT, House, is_out_of_time, request
from tests.integration.jobs.test_lease import event_types


def test_an_expired_lease_goes_back_to_the_queue(house: House) -> None:
    job = house.submit()
    house.claim()
    assert house.leases.sweep().requeued == 0
    house.expire(job)
    swept = house.leases.sweep()
    assert (swept.requeued, swept.nudges) == (1, 1)
    again = house.claim("w2")
    assert (again.job_id, again.attempt, again.fence) == (job, 2, 2)


def test_a_claim_whose_process_is_dead_does_not_wait_for_its_lease(house: House) -> None:
    job, other = house.submit(), house.submit()
    first, kept = house.claim(), house.claim()
    assert house.leases.sweep({(job, first.fence)}).requeued == 1
    again = house.claim("w2")
    assert (again.job_id, again.attempt, again.fence) == (job, 2, 2)
    assert house.leases.sweep({(job, first.fence)}) == Swept(), "an earlier claim's death is nobody's loss"
    assert house.leases.heartbeat(again).ok
    assert house.leases.heartbeat(kept).ok
    assert house.row(other).status == "running"


def test_sweeping_twice_changes_nothing_more(house: House) -> None:
    job = house.submit()
    house.claim()
    house.expire(job)
    house.leases.sweep()
    version = house.row(job).version
    assert house.leases.sweep() == Swept()
    assert house.row(job).version == version


def test_a_job_that_waited_too_long_fails_and_can_not_be_claimed(house: House) -> None:
    job = house.submit(limits={"max_queue_seconds": 60})
    house.shift(job, "queued_at", -61)
    assert house.leases.claim("w1") is None
    assert house.leases.sweep().failed == 1
    error = house.row(job).error
    assert error is not None
    assert (error["code"], error["category"]) == ("deadline_exceeded", "capacity")
    assert event_types(house, job)[-1] == "done"


def test_a_run_past_its_deadline_is_told_by_the_heartbeat_then_ended_by_the_sweep(house: House) -> None:
    job = house.submit(limits={"max_run_seconds": 100})
    claim = house.claim()
    assert not is_out_of_time(house.leases.heartbeat(claim))
    house.shift(job, "attempt_started_at", -101)
    assert is_out_of_time(house.leases.heartbeat(claim))
    assert house.leases.sweep().failed == 0
    house.shift(job, "attempt_started_at", -101 - house.settings.lease_seconds)
    assert house.leases.sweep().failed == 1
    assert not house.leases.heartbeat(claim).ok
    error = house.row(job).error
    assert error is not None
    assert error["code"] == "deadline_exceeded"


def test_run_time_adds_up_over_attempts_and_waiting_does_not_count(house: House) -> None:
    job = house.submit(limits={"max_run_seconds": 100})
    first = house.claim()
    house.shift(job, "attempt_started_at", -60)
    assert house.leases.release(first, "crash")
    assert 59 < house.row(job).ran_seconds < 70
    second = house.claim()
    assert not is_out_of_time(house.leases.heartbeat(second))
    house.shift(job, "attempt_started_at", -45)
    assert is_out_of_time(house.leases.heartbeat(second))


def test_an_expired_lease_past_the_deadline_is_not_tried_again(house: House) -> None:
    job = house.submit(limits={"max_run_seconds": 10})
    house.claim()
    house.shift(job, "attempt_started_at", -60)
    house.expire(job)
    assert house.leases.sweep() == Swept(failed=1)


def test_time_in_which_no_worker_was_there_is_no_run_time(house: House) -> None:
    job = house.submit(limits={"max_run_seconds": 50})
    house.claim()
    house.shift(job, "attempt_started_at", -1000)
    house.shift(job, "lease_until", -960)
    assert house.leases.sweep() == Swept(requeued=1, nudges=1)
    assert house.row(job).ran_seconds == pytest.approx(40, abs=5)
    left = house.claim().run_seconds_left
    assert left == pytest.approx(10, abs=5)


def test_each_wait_in_the_queue_has_the_whole_time_for_waiting(house: House) -> None:
    job = house.submit(limits={"max_queue_seconds": 60})
    house.shift(job, "queued_at", -59)
    assert house.leases.release(house.claim(), "crash")
    assert house.leases.sweep().failed == 0
    house.shift(job, "queued_at", -59)
    assert house.leases.release(house.claim(), "drain")
    house.shift(job, "queued_at", -61)
    assert house.leases.claim("w2") is None
    assert house.leases.sweep().failed == 1


def test_the_oldest_waiting_jobs_are_nudged_for_a_few_at_a_time(house: House) -> None:
    jobs = [house.submit() for _ in range(MAX_NUDGES + 3)]
    assert house.leases.sweep().nudges == MAX_NUDGES
    assert house.leases.sweep().nudges == 3
    assert house.leases.sweep().nudges == 0
    house.shift(jobs[0], "nudged_at", -house.settings.sweep_seconds - 1)
    assert house.leases.sweep().nudges == 1


def test_yesterdays_keys_and_workers_are_forgotten(house: House) -> None:
    house.commands.create_job(request(), tenant=TENANT, idempotency_key="old")
    house.leases.beat_worker("w1", hostname="h", pid=1, device="cpu")
    past = func.clock_timestamp() - timedelta(days=2)
    with house.database.transaction() as session:
        session.execute(update(IdempotencyKey).values(expires_at=past))
        session.execute(update(Worker).values(heartbeat_at=past))
    house.leases.sweep()
    with house.database.transaction() as session:
        assert session.scalars(select(func.count()).select_from(IdempotencyKey)).one() == 0
        assert session.scalars(select(func.count()).select_from(Worker)).one() == 0


def test_health_tells_whether_the_queue_moves(house: House) -> None:
    empty = house.queries.queue_health()
    assert (empty.queued, empty.running, empty.workers) == (0, 0, 0)
    assert empty.oldest_queued_seconds is None
    assert empty.seconds_since_claim is None
    house.leases.beat_worker("w1", hostname="h", pid=1, device="cpu")
    house.leases.beat_worker("w1", hostname="h", pid=1, device="cpu")
    house.submit()
    waiting = house.submit()
    house.claim("w1")
    house.shift(waiting, "queued_at", -90)
    health = house.queries.queue_health()
    assert (health.queued, health.running, health.workers) == (1, 1, 1)
    assert health.oldest_queued_seconds is not None
    assert 89 < health.oldest_queued_seconds < 100
    assert health.seconds_since_claim is not None
    assert 0 <= health.seconds_since_claim < 10


def test_two_sweeps_at_once_requeue_once(house: House) -> None:
    job = house.submit()
    house.claim()
    house.expire(job)
    other = JobLeases(house.database, house.settings)
    assert house.leases.sweep().requeued + other.sweep().requeued == 1


def test_work_files_of_jobs_that_are_over_or_gone_are_known(house: House) -> None:
    waiting, over = house.submit(), house.submit()
    house.commands.cancel_job(over, tenant=TENANT)

    def finished() -> frozenset[str]:
        with house.leases.locking_finished_jobs([waiting, over, "job_gone"]) as ids:
            return ids

    assert finished() == {"job_gone"}
    house.shift(over, "finished_at", -house.settings.work_retention_seconds - 1)
    assert finished() == {"job_gone", over}
    house.commands.retry_job(over, tenant=TENANT)
    assert finished() == {"job_gone"}
    with house.leases.locking_finished_jobs([]) as ids:
        assert ids == frozenset()
