"""A retry takes a failed or cancelled job up again: what counts on counts on, and everything else begins anew."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.job.lease import Claim, Manifest
from jobs.kit.errors import IdempotencyConflict, InvalidState, JobNotFound
from tests.integration.jobs.conftest import TENANT, House, is_out_of_time
from tests.integration.jobs.test_lease import PROBLEM, event_types

EMPTY = Manifest(summary={}, report={}, layers=[], artifacts=())


def failed(house: House) -> tuple[str, Claim]:
    """A job that failed on its first attempt, with that attempt's claim."""
    job = house.submit()
    claim = house.claim()
    assert house.leases.fail(claim, PROBLEM)
    return job, claim


def test_a_failed_job_is_queued_as_if_it_were_new_and_its_counters_go_on(house: House) -> None:
    job, _ = failed(house)
    nudges = house.nudger.nudges
    view = house.commands.retry_job(job, tenant=TENANT, request_id="r2", traceparent="00-t-s-01")
    assert (view.status, view.is_terminal, view.retries, view.attempt) == ("queued", False, 1, 1)
    assert (view.error, view.finished_at, view.stages, view.progress.fraction) == (None, None, (), 0.0)
    assert view.progress.queue_position == 1
    assert house.nudger.nudges == nudges + 1
    claim = house.claim()
    assert (claim.job_id, claim.attempt, claim.fence) == (job, 2, 2)
    assert (claim.request_id, claim.traceparent) == ("r2", "00-t-s-01")
    assert house.leases.publish(claim, EMPTY)
    assert (house.status(job), house.row(job).retries) == ("succeeded", 1)


def test_events_go_on_and_say_why(house: House) -> None:
    job, _ = failed(house)
    house.commands.retry_job(job, tenant=TENANT, from_stage="train")
    assert event_types(house, job) == ["job.status", "job.status", "job.status", "done", "job.status"]
    *_, told = house.queries.list_events(job, tenant=TENANT).data
    assert told.data == {"status": "queued", "attempt": 1, "reason": "retry", "from_stage": "train"}


def test_a_cancelled_job_is_retried_without_its_cancel(house: House) -> None:
    job = house.submit()
    house.commands.cancel_job(job, tenant=TENANT)
    house.commands.retry_job(job, tenant=TENANT)
    assert house.row(job).cancel_requested_at is None
    assert not house.leases.heartbeat(house.claim()).cancel_requested


def test_what_may_not_be_retried_says_what_to_do(house: House) -> None:
    job = house.submit()
    with pytest.raises(InvalidState, match=r"queued. Cancel it first") as waits:
        house.commands.retry_job(job, tenant=TENANT)
    assert "Retry-After" in waits.value.headers
    claim = house.claim()
    with pytest.raises(InvalidState, match=r"running. Cancel it first"):
        house.commands.retry_job(job, tenant=TENANT)
    house.commands.cancel_job(job, tenant=TENANT)
    with pytest.raises(InvalidState, match="being cancelled"):
        house.commands.retry_job(job, tenant=TENANT)
    house.leases.cancelled(claim)
    house.commands.retry_job(job, tenant=TENANT)
    assert house.leases.publish(house.claim(), EMPTY)
    with pytest.raises(InvalidState, match="final") as final:
        house.commands.retry_job(job, tenant=TENANT)
    assert "Retry-After" not in final.value.headers
    assert house.status(job) == "succeeded"


def test_a_missing_job_and_a_foreign_one_look_the_same(house: House) -> None:
    job, _ = failed(house)
    for job_id, tenant in ((job, "another"), ("job_" + "0" * 24, TENANT), ("job_\x00", TENANT)):
        with pytest.raises(JobNotFound):
            house.commands.retry_job(job_id, tenant=tenant)
    assert house.status(job) == "failed"


def test_one_key_retries_once(house: House) -> None:
    job, _ = failed(house)
    first = house.commands.retry_job(job, tenant=TENANT, idempotency_key="k")
    nudges = house.nudger.nudges
    again = house.commands.retry_job(job, tenant=TENANT, idempotency_key="k")
    assert again.model_dump(mode="json") == first.model_dump(mode="json")
    assert (house.row(job).retries, house.nudger.nudges) == (1, nudges)
    with pytest.raises(IdempotencyConflict):
        house.commands.retry_job(job, tenant=TENANT, from_stage="load", idempotency_key="k")


def test_many_retries_at_once_queue_the_job_once(house: House) -> None:
    job, _ = failed(house)

    def retried(_: int) -> bool:
        try:
            house.commands.retry_job(job, tenant=TENANT)
        except InvalidState:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(retried, range(12))) == 1
    assert (house.row(job).retries, house.status(job)) == (1, "queued")


def test_a_worker_of_before_the_retry_can_write_nothing(house: House) -> None:
    job, stale = failed(house)
    house.commands.retry_job(job, tenant=TENANT)
    for _ in range(2):  # while the job waits, and while another worker has it
        assert not house.leases.heartbeat(stale).ok
        assert not house.leases.publish(stale, EMPTY)
        assert not house.leases.fail(stale, PROBLEM)
        assert not house.leases.release(stale, "low_memory")
        current = house.leases.claim("w2")
    assert current is None
    assert house.status(job) == "running"


def test_a_retry_earns_all_attempts_once_more(house: House) -> None:
    job = house.submit()
    allowed = house.settings.max_attempts
    for retry in (1, 2):
        for attempt in range(allowed):
            assert house.status(job) == "queued", attempt
            assert house.leases.release(house.claim(), "crash")
        error = house.row(job).error
        assert error is not None
        assert error["code"] == "crash_loop"
        assert f"attempt {retry * allowed} was its last" in error["detail"]
        house.commands.retry_job(job, tenant=TENANT)
    assert house.claim().attempt == 2 * allowed + 1


def test_both_deadlines_count_anew(house: House) -> None:
    job = house.submit(limits={"max_run_seconds": 100, "max_queue_seconds": 60})
    claim = house.claim()
    house.shift(job, "attempt_started_at", -99)
    assert house.leases.release(claim, "crash")
    house.shift(job, "queued_at", -61)
    assert house.leases.sweep().failed == 1
    house.commands.retry_job(job, tenant=TENANT)
    assert house.leases.sweep().failed == 0
    claim = house.claim()
    assert claim.run_seconds_left == 100
    house.shift(job, "attempt_started_at", -99)
    assert not is_out_of_time(house.leases.heartbeat(claim))


def test_the_stage_is_told_to_every_attempt_until_its_files_are_gone(house: House) -> None:
    job, _ = failed(house)
    house.commands.retry_job(job, tenant=TENANT, from_stage="train")
    first = house.claim()
    assert first.retry_from == "train"
    assert house.leases.release(first, "crash")
    second = house.claim()
    assert second.retry_from == "train"
    assert not house.leases.record_retry_begun(first)
    assert house.leases.record_retry_begun(second)
    assert house.leases.release(second, "crash")
    assert house.claim().retry_from is None


def test_from_resolve_on_the_revision_is_looked_up_again(house: House) -> None:
    for stage, revision in (("load", "c" * 40), ("resolve", None)):
        job = house.submit()
        claim = house.claim()
        house.leases.record_resolved_revision(claim, "c" * 40)
        house.leases.fail(claim, PROBLEM)
        house.commands.retry_job(job, tenant=TENANT, from_stage="load" if stage == "load" else "resolve")
        assert house.claim().resolved_revision == revision


def test_a_job_that_lacked_memory_runs_with_less_once_and_earns_an_attempt_for_it(house: House) -> None:
    job = house.submit()
    for _ in range(house.settings.max_attempts - 1):
        assert house.leases.release(house.claim(), "crash")
    last = house.claim()
    assert not last.low_memory
    assert house.leases.release(last, "low_memory")
    assert event_types(house, job)[-2:] == ["job.status", "log"]
    *_, status, log = house.queries.list_events(job, tenant=TENANT).data
    assert (status.data["status"], status.data["reason"]) == ("queued", "low_memory")
    assert "out of memory" in log.data["message"]
    assert house.queries.get_job(job, tenant=TENANT).low_memory
    less = house.claim()
    assert (less.low_memory, less.attempt) == (True, last.attempt + 1)
    assert not house.leases.release(less, "low_memory"), "only once"
    assert house.status(job) == "running"
    assert house.leases.release(less, "crash")
    assert house.status(job) == "failed"
    assert not house.commands.retry_job(job, tenant=TENANT).low_memory
    assert not house.claim().low_memory


def test_a_cancelling_job_that_lacks_memory_is_cancelled(house: House) -> None:
    job = house.submit()
    claim = house.claim()
    house.commands.cancel_job(job, tenant=TENANT)
    assert house.leases.release(claim, "low_memory")
    assert house.status(job) == "cancelled"
    assert not house.row(job).low_memory
