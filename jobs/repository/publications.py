"""SQL of publications: queries of tenants, and the lease. The states are those of ``PublicationStatus``."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, func, select, tuple_, update
from sqlalchemy.orm import Session

from jobs.kit.leases import ClaimKey
from jobs.kit.states import PublicationStatus
from jobs.repository.clock import now
from jobs.repository.models import Artifact, Publication
from jobs.repository.outbox import announce_publication

_SWEEP_ROWS: Final = 100


def insert(session: Session, row: Publication) -> None:
    """Insert a new publication, flushed and read back."""
    session.add(row)
    session.flush()
    session.refresh(row)


def find(session: Session, tenant: str, publication_id: str) -> Publication | None:
    """Return one of the tenant's publications."""
    return session.scalars(
        select(Publication).where(Publication.tenant == tenant, Publication.id == publication_id)
    ).one_or_none()


def page(session: Session, job_id: str, *, limit: int, after: tuple[datetime, str] | None) -> Sequence[Publication]:
    """Return up to ``limit`` publications of a job, newest first, that come after the cursor."""
    statement = select(Publication).where(Publication.job_id == job_id)
    if after is not None:
        statement = statement.where(tuple_(Publication.created_at, Publication.id) < after)
    return session.scalars(statement.order_by(Publication.created_at.desc(), Publication.id.desc()).limit(limit)).all()


def restart(session: Session, tenant: str, publication_id: str) -> Publication | None:
    """Queue a failed publication again with its full number of attempts; None when it is not failed."""
    return _update(
        session,
        Publication.tenant == tenant,
        Publication.id == publication_id,
        Publication.status == PublicationStatus.FAILED,
        values={
            "status": PublicationStatus.QUEUED.value,
            "attempt": 0,
            "available_at": now(),
            "finished_at": None,
            "error": None,
        },
    )


def claim_oldest(session: Session, owner: str, lease_seconds: float) -> Publication | None:
    """Start the next attempt of the publication that has been available longest; locked rows are skipped."""
    oldest = (
        select(Publication.id)
        .where(Publication.status == PublicationStatus.QUEUED, Publication.available_at <= now())
        .order_by(Publication.available_at, Publication.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    return _update(
        session,
        Publication.id == oldest,
        Publication.status == PublicationStatus.QUEUED,
        values={
            "status": PublicationStatus.RUNNING.value,
            "fence": Publication.fence + 1,
            "attempt": Publication.attempt + 1,
            "owner": owner,
            "lease_until": now() + timedelta(seconds=lease_seconds),
            "started_at": func.coalesce(Publication.started_at, now()),
        },
    )


def artifacts_of(session: Session, job_id: str, prefix: str) -> Sequence[Artifact]:
    """Return the job's files below ``prefix``, by path."""
    where = (Artifact.job_id == job_id, Artifact.path.startswith(prefix, autoescape=True))
    return session.scalars(select(Artifact).where(*where).order_by(Artifact.path)).all()


def renew(session: Session, publication_id: str, fence: int, lease_seconds: float) -> bool:
    """Renew a lease. No view shows it, so the version stays. False: the claim is lost."""
    until = now() + timedelta(seconds=lease_seconds)
    statement = update(Publication).where(*fenced(publication_id, fence)).values(lease_until=until)
    return session.scalars(statement.returning(Publication.id)).one_or_none() is not None


def update_fenced(session: Session, publication_id: str, fence: int, values: Mapping[str, Any]) -> bool:
    """Make any other write of a worker while it holds the claim; False when the claim is lost."""
    return _update(session, *fenced(publication_id, fence), values=values) is not None


def finish(
    session: Session, publication_id: str, fence: int, status: PublicationStatus, values: Mapping[str, Any]
) -> bool:
    """End the publication and write its webhook messages. False: the claim was lost first."""
    ended = _update(session, *fenced(publication_id, fence), values=_ended(status) | dict(values))
    if ended is not None:
        announce_publication(session, ended)
    return ended is not None


def requeue(
    session: Session,
    publication_id: str,
    fence: int,
    *,
    delay_seconds: float,
    counts: bool = True,
    error: Mapping[str, Any] | None = None,
) -> bool:
    """Return a publication to the queue; an attempt that does not count is subtracted. False: the claim was lost."""
    values: dict[str, Any] = {
        "status": PublicationStatus.QUEUED.value,
        "attempt": Publication.attempt if counts else Publication.attempt - 1,
        "available_at": now() + timedelta(seconds=delay_seconds),
        "owner": None,
        "lease_until": None,
    }
    return update_fenced(session, publication_id, fence, values if error is None else {**values, "error": error})


def lock_expired(session: Session, orphans: Collection[ClaimKey]) -> Sequence[Publication]:
    """Lock running publications with an expired lease or an orphaned claim."""
    over = (Publication.lease_until < now()) | tuple_(Publication.id, Publication.fence).in_(orphans)
    where = (Publication.status == PublicationStatus.RUNNING, over)
    return session.scalars(select(Publication).where(*where).limit(_SWEEP_ROWS).with_for_update(skip_locked=True)).all()


def unfinished(session: Session, publication_ids: Collection[str]) -> frozenset[str]:
    """Return those of ``publication_ids`` that wait or run."""
    if not publication_ids:
        return frozenset()
    waiting = (PublicationStatus.QUEUED, PublicationStatus.RUNNING)
    where = (Publication.id.in_(publication_ids), Publication.status.in_(waiting))
    return frozenset(session.scalars(select(Publication.id).where(*where)))


def fenced(publication_id: str, fence: int) -> tuple[ColumnElement[bool], ...]:
    """Return conditions that are true only while the claim with this fence holds the row."""
    return (
        Publication.id == publication_id,
        Publication.fence == fence,
        Publication.status == PublicationStatus.RUNNING,
    )


def _ended(status: PublicationStatus) -> dict[str, Any]:
    return {"status": status.value, "finished_at": func.clock_timestamp(), "owner": None, "lease_until": None}


def _update(session: Session, *where: ColumnElement[bool], values: Mapping[str, Any]) -> Publication | None:
    statement = (
        update(Publication)
        .where(*where)
        .values({"version": Publication.version + 1, **values})
        .returning(Publication)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()
