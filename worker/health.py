"""Whether the worker of this machine works: ``python -m worker.health``; exit status 0 when it does, else 1 and why.

A ping would answer while nothing is ever taken. So this asks the database: has a worker here reported lately, and,
where a job could have been taken for a while, does one here work, or has one here taken a job lately?
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
    """What is wrong with the workers of ``hostname``; None when nothing is.

    Raises:
        Unavailable: the database does not answer.
    """
    here = [worker for worker in overview.recent_workers() if worker.hostname == hostname]
    if not here:
        return f"no worker of {hostname} has reported lately"
    if any(worker.busy for worker in here):
        return None
    queue = overview.queue_health()
    waited = timedelta(seconds=queue.oldest_claimable_seconds or 0.0)
    last_seen_busy = max(worker.last_claim_at or worker.started_at for worker in here)
    if min(waited, now - last_seen_busy) > _STALLED:
        return f"{queue.queued} jobs wait, and none has been taken here since {last_seen_busy.isoformat()}"
    return None


def main(settings: Settings | None = None) -> int:
    """The exit status; the reason goes to standard error."""
    settings = settings or get_settings()
    if settings.database_url is None:
        sys.stderr.write("QUANTRY_DATABASE_URL is not set\n")
        return 1
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
