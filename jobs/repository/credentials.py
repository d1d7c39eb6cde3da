"""SQL of credentials. Every query is limited to a tenant; the secret is only loaded where it is used."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete as delete_from
from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from jobs.repository.models import Credential


def find(session: Session, tenant: str, credential_id: str) -> Credential | None:
    """Return the credential, without its secret."""
    statement = select(Credential).where(Credential.tenant == tenant, Credential.id == credential_id)
    return session.scalars(statement).one_or_none()


def count(session: Session, tenant: str) -> int:
    """Return the number of the tenant's credentials."""
    return session.scalars(select(func.count()).where(Credential.tenant == tenant)).one()


def page(session: Session, tenant: str, *, limit: int, after: tuple[datetime, str] | None) -> Sequence[Credential]:
    """Return up to ``limit`` credentials, newest first, that come after the cursor."""
    statement = select(Credential).where(Credential.tenant == tenant)
    if after is not None:
        statement = statement.where(tuple_(Credential.created_at, Credential.id) < after)
    return session.scalars(statement.order_by(Credential.created_at.desc(), Credential.id.desc()).limit(limit)).all()


def delete(session: Session, tenant: str, credential_id: str) -> bool:
    """Delete a credential; False when there is none."""
    where = (Credential.tenant == tenant, Credential.id == credential_id)
    return session.scalars(delete_from(Credential).where(*where).returning(Credential.id)).one_or_none() is not None
