"""SQL of Idempotency-Key. The primary key is (tenant, endpoint, key); an advisory lock marks requests in flight."""

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from jobs.repository.models import IdempotencyKey


def try_lock(session: Session, tenant: str, endpoint: str, key: str) -> bool:
    """Lock the key until the transaction ends; False when another transaction has it."""
    # Advisory locks have 64-bit numbers. Two keys with the same hash would only exclude each other.
    identity = func.hashtextextended("\n".join((tenant, endpoint, key)), 0)
    return bool(session.scalars(select(func.pg_try_advisory_xact_lock(identity))).one())


def find(session: Session, tenant: str, endpoint: str, key: str) -> IdempotencyKey | None:
    """Return the stored answer. An expired one is deleted here instead."""
    now = func.clock_timestamp()
    where = (IdempotencyKey.tenant == tenant, IdempotencyKey.endpoint == endpoint, IdempotencyKey.key == key)
    session.execute(delete(IdempotencyKey).where(*where, IdempotencyKey.expires_at < now))
    return session.scalars(select(IdempotencyKey).where(*where)).one_or_none()


def store(
    session: Session,
    identity: tuple[str, str, str],
    *,
    request_hash: str,
    response: dict[str, Any],
    keep: timedelta,
) -> None:
    """Store the answer, in the transaction of the change that it answers."""
    tenant, endpoint, key = identity
    row = IdempotencyKey(tenant=tenant, endpoint=endpoint, key=key, request_hash=request_hash, response=response)
    row.expires_at = session.scalars(select(func.clock_timestamp() + keep)).one()
    session.add(row)
    session.flush()
