"""Check the worker of this machine: ``python -m worker.health`` exits with 0 if it works, else with 1 and the reason.

A worker that never takes a job could still answer a ping. So this check asks the database: a worker of this machine has
to have reported lately, and if a job has waited for a while, a worker here has to be busy or have taken a job lately.
"""

import socket
import sys
from datetime import UTC, datetime, timedelta
from typing import Final

from jobs.job.overview import Overview
from jobs.kit.errors import Unavailable
from jobs.repository.database import Database
from jobs.settings import Settings, get_settings

_STALLED: Final = timedelta(seconds=60)


def trouble(overview: Overview, hostname: str, now: datetime) -> str | None:
    """Return what is wrong with the workers of ``hostname``, or None.

    Raises:
        Unavailable: the database does not answer.
    """
    here = [worker for worker in overview.recent_workers() if worker.hostname == hostname]
    if not here:
        return f"no worker of {hostname} has reported lately"
    # This machine works, so it is not the reason why other jobs wait.
    if any(worker.busy for worker in here):
        return None
    queue = overview.queue_health()
    waited = timedelta(seconds=queue.oldest_claimable_seconds or 0.0)
    # A worker that has just started has had no chance to take a job yet.
    last_seen_busy = max(worker.last_claim_at or worker.started_at for worker in here)
    if min(waited, now - last_seen_busy) > _STALLED:
        return f"{queue.queued} jobs wait, and none has been taken here since {last_seen_busy.isoformat()}"
    return None


def main(settings: Settings | None = None) -> int:
    """Return the exit status; write the reason to standard error."""
    settings = settings or get_settings()
    if settings.database_url is None:
        sys.stderr.write("QUANTRY_DATABASE_URL is not set\n")
        return 1
    # One connection is enough: the questions follow each other.
    database = Database(settings.database_url.get_secret_value(), pool_size=1)
    try:
        reason = trouble(Overview(database, settings), socket.gethostname(), datetime.now(UTC))
    except Unavailable as error:
        reason = error.detail
    finally:
        database.close()
    if reason is not None:
        sys.stderr.write(reason + "\n")
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main())
