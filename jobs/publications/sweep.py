"""Repairing what dead workers leave of publications. Any worker may sweep at any time; locked rows are passed over."""

from collections.abc import Collection

from sqlalchemy.orm import Session

from jobs.kit.leases import ClaimKey
from jobs.kit.states import PublicationStatus
from jobs.publications.problems import crashed, shown
from jobs.repository import publications


def sweep_publications(session: Session, orphans: Collection[ClaimKey]) -> int:
    """Settle expired leases and orphans: queued again, or failed when the attempts are used up. How many there were."""
    expired = publications.lock_expired(session, orphans)
    for row in expired:
        if row.attempt >= row.max_attempts:
            error = {"error": shown(crashed(row.attempt), row.id)}
            publications.finish(session, row.id, row.fence, PublicationStatus.FAILED, error)
        else:
            publications.requeue(session, row.id, row.fence, delay_seconds=0.0)
    return len(expired)
