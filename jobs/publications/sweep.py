"""Repairing publications of dead workers. Any worker may sweep at any time; locked rows are skipped."""

from collections.abc import Collection

from sqlalchemy.orm import Session

from jobs.kit.attempt_limit import is_last_attempt
from jobs.kit.leases import ClaimKey
from jobs.kit.states import PublicationStatus
from jobs.publications.problems import crashed, shown
from jobs.repository import publications


def sweep_publications(session: Session, orphans: Collection[ClaimKey]) -> int:
    """Queue publications of expired leases or orphaned claims again; after the last attempt fail them. Count them."""
    expired = publications.lock_expired(session, orphans)
    for row in expired:
        if is_last_attempt(row):
            error = {"error": shown(crashed(row.attempt), row.id)}
            publications.finish(session, row.id, row.fence, PublicationStatus.FAILED, error)
        else:
            publications.requeue(session, row.id, row.fence, delay_seconds=0.0)
    return len(expired)
