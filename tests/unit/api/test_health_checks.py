"""How readiness judges what the database says of the workers."""

import pytest

from api.health.checks import judge_workers
from jobs.kit.views import QueueHealth


def _health(
    *,
    queued: int = 0,
    running: int = 0,
    oldest: float | None = None,
    delayed: bool = False,
    workers: int = 1,
    claimed: float | None = None,
) -> QueueHealth:
    return QueueHealth(
        queued=queued,
        running=running,
        oldest_queued_seconds=oldest,
        oldest_claimable_seconds=None if delayed else oldest,
        workers=workers,
        seconds_since_claim=claimed,
    )


@pytest.mark.parametrize(
    ("health", "status"),
    [
        (None, "down"),
        (_health(workers=0), "missing"),
        (_health(), "ok"),
        (_health(queued=5, oldest=10.0), "ok"),
        (_health(queued=5, oldest=500.0, running=1), "ok"),
        (_health(queued=5, oldest=500.0, running=1, claimed=7200.0), "ok"),
        (_health(queued=5, oldest=500.0, claimed=3.0), "ok"),
        (_health(queued=5, oldest=500.0, delayed=True, claimed=500.0), "ok"),
        (_health(queued=5, oldest=500.0, claimed=500.0), "stalled"),
        (_health(queued=1, oldest=61.0), "stalled"),
    ],
)
def test_workers(health: QueueHealth | None, status: str) -> None:
    check = judge_workers(health)
    assert check.status == status
    assert check.passes is (status == "ok")
