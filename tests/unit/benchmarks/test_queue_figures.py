"""The queue's figures, of queues whose figures one can say by heart."""

from collections import Counter

import pytest

from benchmarks.queue_figures import ServedJob, figures, gaps, inversions, share_deviation, spread, wait_ratio


def served(order: str, submitted: str | None = None) -> list[ServedJob]:
    """``order``: the tenant of each second's claim; in the order of ``submitted``, each tenant's oldest first."""
    jobs = [
        ServedJob(
            tenant=tenant, claimer=1, claimed_at=float(second), started_at=second + 0.3, finished_at=second + 0.75
        )
        for second, tenant in enumerate(order)
    ]
    left = {tenant: [job for job in jobs if job.tenant == tenant] for tenant in set(order)}
    return [left[tenant].pop(0) for tenant in submitted or order]


def test_turns_in_order_are_just() -> None:
    found = figures(served("abcabcabaa", submitted="aaaaabbbcc"), bare=[0.1, 0.1, 0.2], single=[])
    assert (found["jobs"], found["tenants"], found["inversions"]) == (10, 3, 0)
    assert found["share_deviation"] == 0
    assert found["wait_ratio"] == pytest.approx(1.0)
    assert found["overhead"]["median"] == pytest.approx(0.2)
    assert found["between_jobs"]["max"] == pytest.approx(0.25)
    assert found["total_seconds"] == pytest.approx(9.75)


def test_a_flood_that_is_served_first_shows() -> None:
    jobs = served("aaaabb", submitted="aaaabb")
    assert share_deviation(jobs) == pytest.approx(1.0)
    assert wait_ratio(jobs) == pytest.approx(5 / 2)


def test_a_job_that_overtakes_one_of_its_tenant_is_counted() -> None:
    first, second, third = served("aaa")
    assert inversions([first, second, third]) == 0
    assert inversions([third, first, second]) == 2
    assert inversions([first, third, second]) == 1


def test_gaps_are_between_jobs_of_one_claimer() -> None:
    one, two, three = served("aaa")
    other = ServedJob(tenant="a", claimer=2, claimed_at=0.5, started_at=0.6, finished_at=0.7)
    assert gaps([three, one, other, two]) == pytest.approx([0.25, 0.25])
    assert Counter(gaps([one, other])) == {}


def test_the_spread_of_a_hundred() -> None:
    assert spread([float(number) for number in range(1, 101)]) == {"median": 50.5, "p95": 96.0, "max": 100.0}
