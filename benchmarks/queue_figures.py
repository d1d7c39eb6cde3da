"""What many served jobs say about their queue. Pure functions; times are seconds since the epoch."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ServedJob:
    """One job that ran. ``claimer``: the process that claimed it."""

    tenant: str
    claimer: int
    claimed_at: float
    started_at: float
    finished_at: float


def figures(jobs: Sequence[ServedJob], bare: Sequence[float], single: Sequence[float]) -> dict[str, Any]:
    """All figures.

    ``jobs`` in the order of their submission; ``bare``: starts of the runner alone; ``single``: from submission to
    claim, of jobs that found the workers idle.
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
    """Median, 95th percentile and largest; zeros of nothing."""
    if not values:
        return {"median": 0.0, "p95": 0.0, "max": 0.0}
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "p95": ordered[min(round(0.95 * len(ordered)), len(ordered) - 1)],
        "max": ordered[-1],
    }


def gaps(jobs: Sequence[ServedJob]) -> list[float]:
    """From the end of a job to the next claim of the same process."""
    found = []
    for claimer in {job.claimer for job in jobs}:
        own = sorted((job for job in jobs if job.claimer == claimer), key=lambda job: job.claimed_at)
        found += [after.claimed_at - before.finished_at for before, after in pairwise(own)]
    return found


def inversions(jobs: Sequence[ServedJob]) -> int:
    """Jobs that were claimed before an earlier one of their tenant."""
    overtaking = 0
    latest: dict[str, float] = {}
    for job in jobs:
        overtaking += job.claimed_at < latest.get(job.tenant, job.claimed_at)
        latest[job.tenant] = max(job.claimed_at, latest.get(job.tenant, job.claimed_at))
    return overtaking


def share_deviation(jobs: Sequence[ServedJob]) -> float:
    """While all tenants had jobs waiting: by how much the best and the worst served are off an equal share.

    0.1 means that one tenant was served 10 % more, or less, than its share.
    """
    left = Counter(job.tenant for job in jobs)
    served: Counter[str] = Counter(dict.fromkeys(left, 0))
    for job in sorted(jobs, key=lambda job: job.claimed_at):
        if min((left - served)[tenant] for tenant in left) == 0:
            break
        served[job.tenant] += 1
    fair = served.total() / len(left)
    return max(abs(count / fair - 1.0) for count in served.values()) if fair else 0.0


def wait_ratio(jobs: Sequence[ServedJob]) -> float:
    """Of the job served latest against its due: with T tenants, a tenant's k-th job is due by place k · T.

    At most 1 when turns are kept; claims at the same moment may add a place.
    """
    tenants = len({job.tenant for job in jobs})
    order = {id(job): place for place, job in enumerate(sorted(jobs, key=lambda job: job.claimed_at), start=1)}
    rank: Counter[str] = Counter()
    worst = 0.0
    for job in jobs:
        rank[job.tenant] += 1
        worst = max(worst, order[id(job)] / (rank[job.tenant] * tenants))
    return worst
