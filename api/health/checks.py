"""The checks of readiness: the database, the broker and the workers."""

from collections.abc import Callable
from typing import Final

from api.health.schemas import Check, Checks, WorkersCheck
from jobs.job.queries import JobQueries
from jobs.kit.errors import NotMigrated, Unavailable
from jobs.kit.views import QueueHealth

_STALLED_SECONDS: Final = 60.0


def check_all(queries: JobQueries, broker_answers: Callable[[], bool] | None) -> Checks:
    """Run every check once. ``broker_answers`` is None where no broker is configured."""
    database, health = _ask_database(queries)
    return Checks(database=database, broker=_broker(broker_answers), workers=judge_workers(health))


def judge_workers(health: QueueHealth | None) -> WorkersCheck:
    """Judge the workers: one must have reported recently, and must take jobs if jobs wait and none runs."""
    if health is None:
        return WorkersCheck(status="down", detail="Unknown without the database.")
    numbers = health.model_dump()
    if health.workers == 0:
        return WorkersCheck(status="missing", detail="No worker has reported lately. Start one.", **numbers)
    if _is_stalled(health):
        return WorkersCheck(
            status="stalled", detail="Jobs wait and workers report, but none takes a job. Restart them.", **numbers
        )
    return WorkersCheck(status="ok", detail="A worker has reported lately.", **numbers)


def _is_stalled(health: QueueHealth) -> bool:
    """Return whether no worker works although jobs wait. While a job runs, the others only wait for their turn.

    The age is that of the oldest claimable job: a job that failed may have to wait for its next attempt.
    """
    waited, claimed = health.oldest_claimable_seconds or 0.0, health.seconds_since_claim
    idle = claimed is None or claimed > _STALLED_SECONDS
    return health.running == 0 and waited > _STALLED_SECONDS and idle


def _ask_database(queries: JobQueries) -> tuple[Check, QueueHealth | None]:
    try:
        return Check(status="ok", detail="PostgreSQL answers."), queries.queue_health()
    except NotMigrated:
        detail = "The database's schema is not this release's. Run 'alembic upgrade head'."
        return Check(status="not_migrated", detail=detail), None
    except Unavailable:
        detail = "PostgreSQL does not answer. Check QUANTRY_DATABASE_URL and the server."
        return Check(status="down", detail=detail), None


def _broker(broker_answers: Callable[[], bool] | None) -> Check:
    if broker_answers is None:
        return Check(status="not_configured", detail="No broker: workers find jobs at their next sweep.")
    if not broker_answers():
        return Check(status="down", detail="The broker does not answer. Check QUANTRY_BROKER_URL and the server.")
    return Check(status="ok", detail="The broker answers.")
