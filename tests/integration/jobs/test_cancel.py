"""Cancel is durable, and a late one never loses a finished model."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.job.lease import Manifest
from jobs.kit.errors import InvalidState, JobNotFound
from tests.integration.jobs.conftest import TENANT, House
from tests.integration.jobs.test_lease import PROBLEM, event_types

EMPTY = Manifest(summary={}, report={}, layers=[], artifacts=())


def test_a_queued_job_is_cancelled_at_once_and_never_starts(house: House) -> None:
    job = house.submit()
    view = house.commands.cancel_job(job, tenant=TENANT)
    assert (view.status, view.is_terminal) == ("cancelled", True)
    assert view.finished_at is not None
    assert house.leases.claim("w1") is None
    assert event_types(house, job) == ["job.status", "job.status", "done"]


def test_a_running_job_is_cancelling_until_its_worker_says_so(house: House) -> None:
    job = house.submit()
    claim = house.claim()
    assert house.commands.cancel_job(job, tenant=TENANT).status == "cancelling"
    version = house.row(job).version
    assert house.commands.cancel_job(job, tenant=TENANT).status == "cancelling"
    assert house.row(job).version == version
    beat = house.leases.heartbeat(claim)
    assert (beat.ok, beat.cancel_requested) == (True, True)
    assert house.leases.cancelled(claim)
    assert house.status(job) == "cancelled"


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_a_job_that_is_over_can_not_be_cancelled(house: House, end: str) -> None:
    job = house.submit()
    claim = house.claim()
    if end == "succeeded":
        assert house.leases.publish(claim, EMPTY)
    elif end == "failed":
        assert house.leases.fail(claim, PROBLEM)
    else:
        house.commands.cancel_job(job, tenant=TENANT)
        assert house.leases.cancelled(claim)
    with pytest.raises(InvalidState, match=end):
        house.commands.cancel_job(job, tenant=TENANT)
    assert house.status(job) == end


def test_after_a_cancel_nothing_is_published(house: House) -> None:
    job = house.submit()
    claim = house.claim()
    house.commands.cancel_job(job, tenant=TENANT)
    assert not house.leases.publish(claim, EMPTY)
    assert house.leases.cancelled(claim)
    assert house.row(job).summary is None


@pytest.mark.parametrize("reason", ["crash", "drain"])
def test_a_cancelling_job_that_is_released_is_cancelled(house: House, reason: str) -> None:
    job = house.submit()
    claim = house.claim()
    house.commands.cancel_job(job, tenant=TENANT)
    assert house.leases.release(claim, "crash" if reason == "crash" else "drain")
    assert house.status(job) == "cancelled"


def test_a_cancelling_job_that_fails_is_cancelled(house: House) -> None:
    job = house.submit()
    claim = house.claim()
    house.commands.cancel_job(job, tenant=TENANT)
    assert house.leases.fail(claim, PROBLEM)
    assert house.status(job) == "cancelled"
    assert house.row(job).error is None


def test_a_cancelling_job_without_a_worker_is_cancelled_by_the_sweep(house: House) -> None:
    job = house.submit()
    house.claim()
    house.commands.cancel_job(job, tenant=TENANT)
    assert house.leases.sweep().cancelled == 0
    house.expire(job)
    assert house.leases.sweep().cancelled == 1
    assert house.status(job) == "cancelled"


def test_a_cancel_that_races_a_publish_has_one_winner(house: House) -> None:
    outcomes = set()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(25):
            job = house.submit()
            claim = house.claim()
            publishing = pool.submit(house.leases.publish, claim, EMPTY)
            cancelling = pool.submit(house.commands.cancel_job, job, tenant=TENANT)
            published, refused = publishing.result(), isinstance(cancelling.exception(), InvalidState)
            assert published == refused
            assert house.status(job) == ("succeeded" if published else "cancelling")
            outcomes.add(published)
            house.leases.cancelled(claim)
    assert outcomes <= {True, False}


def test_a_cancel_that_races_a_claim_is_never_lost(house: House) -> None:
    with ThreadPoolExecutor(2) as pool:
        for _ in range(25):
            job = house.submit()
            claiming = pool.submit(house.leases.claim, "w1")
            cancelling = pool.submit(house.commands.cancel_job, job, tenant=TENANT)
            assert cancelling.result().status in {"cancelled", "cancelling"}
            claim = claiming.result()
            if claim is None:
                assert house.status(job) == "cancelled"
            else:
                assert house.leases.heartbeat(claim).cancel_requested
                assert house.leases.cancelled(claim)


def test_a_missing_job_and_a_foreign_one_look_the_same(house: House) -> None:
    job = house.submit()
    for job_id, tenant in ((job, "another"), ("job_" + "0" * 24, TENANT), ("job_\x00", TENANT), ("' OR 1=1", TENANT)):
        with pytest.raises(JobNotFound):
            house.commands.cancel_job(job_id, tenant=tenant)
    assert house.status(job) == "queued"
