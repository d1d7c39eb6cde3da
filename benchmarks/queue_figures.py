"""Compute the figures of a queue from the jobs that it served. Pure functions; times are seconds since the epoch."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ServedJob:
    """One job that ran. ``claimer`` is the process that claimed it."""

    tenant: str
    claimer: int
    claimed_at: float
    started_at: float
    finished_at: float


def figures(jobs: Sequence[ServedJob], bare: Sequence[float], single: Sequence[float]) -> dict[str, Any]:
    """Compute all figures.

    Args:
        jobs: in the order of their submission.
        bare: the seconds of starts of the runner without a worker.
        single: the seconds from submission to claim of jobs that were submitted to idle workers.
    """
    starts = [job.started_at - job.claimed_at for job in jobs]
    usual = statistics.median(bare)
    return {
        "jobs": len(jobs),
        "tenants": len({job.tenant for job in jobs}),
        "claim_to_start": spread(starts),
        "bare_start": spread(bare),
        "overhead": spread([seconds - usual for seconds in starts]),
        "between_jobs": spread(gaps(jobs)),
        "submit_to_claim": spread(single),
        "inversions": inversions(jobs),
        "share_deviation": share_deviation(jobs),
        "wait_ratio": wait_ratio(jobs),
        "total_seconds": max(job.finished_at for job in jobs) - min(job.claimed_at for job in jobs),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and largest value; zeros without values."""
    if not values:
        return {"median": 0.0, "p95": 0.0, "max": 0.0}
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "p95": ordered[min(round(0.95 * len(ordered)), len(ordered) - 1)],
        "max": ordered[-1],
    }


def gaps(jobs: Sequence[ServedJob]) -> list[float]:
    """The seconds from the end of each job to the next claim of the same process."""
    found = []
    for claimer in {job.claimer for job in jobs}:
        own = sorted((job for job in jobs if job.claimer == claimer), key=lambda job: job.claimed_at)
        found += [after.claimed_at - before.finished_at for before, after in pairwise(own)]
    return found


def inversions(jobs: Sequence[ServedJob]) -> int:
    """The number of jobs that were claimed before an earlier job of the same tenant."""
    overtaking = 0
    latest: dict[str, float] = {}
    for job in jobs:
        overtaking += job.claimed_at < latest.get(job.tenant, job.claimed_at)
        latest[job.tenant] = max(job.claimed_at, latest.get(job.tenant, job.claimed_at))
    return overtaking


def share_deviation(jobs: Sequence[ServedJob]) -> float:
    """The largest deviation of a tenant from an equal share, while all tenants had waiting jobs.

    0.1 means that one tenant was served 10 % more, or less, than its share.
    """
    left = Counter(job.tenant for job in jobs)
    served: Counter[str] = Counter(dict.fromkeys(left, 0))
    for job in sorted(jobs, key=lambda job: job.claimed_at):
        # From here on a tenant has no waiting jobs, so unequal shares are no longer unfair.
        if min((left - served)[tenant] for tenant in left) == 0:
            break
        served[job.tenant] += 1
    fair = served.total() / len(left)
    return max(abs(count / fair - 1.0) for count in served.values()) if fair else 0.0


def wait_ratio(jobs: Sequence[ServedJob]) -> float:
    """The largest ratio of a job's place to the place at which it is due.

    With T tenants, a tenant's k-th job is due at place k · T. The ratio is at most 1 if tenants take turns. Claims at
    the same moment may add one place.
    """
    tenants = len({job.tenant for job in jobs})
    order = {id(job): place for place, job in enumerate(sorted(jobs, key=lambda job: job.claimed_at), start=1)}
    rank: Counter[str] = Counter()
    worst = 0.0
    for job in jobs:
        rank[job.tenant] += 1
        worst = max(worst, order[id(job)] / (rank[job.tenant] * tenants))
    return worst
