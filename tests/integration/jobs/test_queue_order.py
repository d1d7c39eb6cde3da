"""The queue's order: first come, first served within a tenant; turns between tenants; nobody starves or blocks."""

from jobs.lease import Claim
from tests.integration.jobs.conftest import House, request


def submit(house: House, tenant: str, **limits: int) -> str:
    view, _ = house.service.create_job(request(limits=limits), tenant=tenant)
    return view.id


def finish(house: House, claim: Claim) -> None:
    house.service.cancel_job(claim.job_id, tenant=claim.tenant)
    assert house.keeper.cancelled(claim)


def serve(house: House) -> Claim:
    """Claim a job and end it."""
    claim = house.claim()
    finish(house, claim)
    return claim


def test_a_tenants_jobs_run_in_the_order_of_their_creation(house: House) -> None:
    jobs = [submit(house, "a") for _ in range(5)]
    assert [serve(house).job_id for _ in jobs] == jobs


def test_tenants_alternate_however_long_their_backlogs_are(house: House) -> None:
    for tenant, jobs in (("a", 12), ("b", 3), ("c", 1)):
        for _ in range(jobs):
            submit(house, tenant)
    served = "".join(serve(house).tenant for _ in range(16))
    assert served == "abc" + "ab" * 2 + "a" * 9
