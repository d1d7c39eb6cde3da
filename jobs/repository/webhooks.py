"""SQL of webhook endpoints and of their deliveries as a tenant sees them, and the outbox's insert."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, tuple_, update
from sqlalchemy import delete as delete_from
from sqlalchemy.orm import Session

from jobs.kit.states import DeliveryStatus
from jobs.repository.clock import now
from jobs.repository.models import WebhookDelivery, WebhookEndpoint


def moment(session: Session) -> datetime:
    """The database's clock, read."""
    now: datetime = session.scalars(select(func.clock_timestamp())).one()
    return now


def after(seconds: float) -> ColumnElement[Any]:
    """So many seconds from now."""
    return now() + timedelta(seconds=seconds)


def hold_subscribers(session: Session, tenant: str, event_type: str) -> Sequence[str]:
    """Enabled endpoints that want this event; none of them can be deleted until the transaction ends.

    One that is being deleted right now is passed over: a job's transaction never waits for a webhook's.
    """
    wanted = (
        WebhookEndpoint.tenant == tenant,
        WebhookEndpoint.enabled,
        WebhookEndpoint.events.contains([event_type]),
    )
    held = select(WebhookEndpoint.id).where(*wanted).with_for_update(read=True, key_share=True, skip_locked=True)
    return session.scalars(held).all()


def add_deliveries(session: Session, rows: Sequence[WebhookDelivery]) -> None:
    """New messages, flushed."""
    session.add_all(rows)
    session.flush()


def insert(session: Session, row: WebhookEndpoint) -> None:
    """A new endpoint, flushed and read back."""
    session.add(row)
    session.flush()
    session.refresh(row)


def lock_tenant(session: Session, tenant: str) -> None:
    """Let the tenant's endpoints be counted and added to by one transaction at a time."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"webhooks\n{tenant}", 0))))


def count(session: Session, tenant: str) -> int:
    """How many endpoints the tenant has."""
    return session.scalars(select(func.count()).where(WebhookEndpoint.tenant == tenant)).one()


def find(session: Session, tenant: str, endpoint_id: str) -> WebhookEndpoint | None:
    """One of the tenant's, without its secrets."""
    return session.scalars(select(WebhookEndpoint).where(*_of(tenant, endpoint_id))).one_or_none()


def page(
    session: Session, tenant: str, *, limit: int, after_key: tuple[datetime, str] | None
) -> Sequence[WebhookEndpoint]:
    """Up to ``limit`` endpoints, newest first, that come after the cursor."""
    row = WebhookEndpoint
    statement = select(row).where(row.tenant == tenant)
    if after_key is not None:
        statement = statement.where(tuple_(row.created_at, row.id) < after_key)
    return session.scalars(statement.order_by(row.created_at.desc(), row.id.desc()).limit(limit)).all()


def change(session: Session, tenant: str, endpoint_id: str, values: Mapping[str, Any]) -> WebhookEndpoint | None:
    """The endpoint with these columns changed; None when the tenant has none of this id."""
    statement = (
        update(WebhookEndpoint)
        .where(*_of(tenant, endpoint_id))
        .values({"version": WebhookEndpoint.version + 1, **values})
        .returning(WebhookEndpoint)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()


def delete(session: Session, tenant: str, endpoint_id: str) -> bool:
    """Delete it and all its deliveries; False when there is none."""
    statement = delete_from(WebhookEndpoint).where(*_of(tenant, endpoint_id)).returning(WebhookEndpoint.id)
    return session.scalars(statement).one_or_none() is not None


def find_delivery(session: Session, tenant: str, endpoint_id: str, delivery_id: str) -> WebhookDelivery | None:
    """One delivery of one of the tenant's endpoints."""
    statement = select(WebhookDelivery).join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
    return session.scalars(statement.where(*_of(tenant, endpoint_id), WebhookDelivery.id == delivery_id)).one_or_none()


def page_deliveries(
    session: Session,
    endpoint_id: str,
    *,
    limit: int,
    after_key: tuple[datetime, str] | None,
    status: DeliveryStatus | None,
) -> Sequence[WebhookDelivery]:
    """Up to ``limit`` deliveries, newest first, that come after the cursor."""
    row = WebhookDelivery
    statement = select(row).where(row.endpoint_id == endpoint_id)
    if status is not None:
        statement = statement.where(row.status == status)
    if after_key is not None:
        statement = statement.where(tuple_(row.created_at, row.id) < after_key)
    return session.scalars(statement.order_by(row.created_at.desc(), row.id.desc()).limit(limit)).all()


def restart_delivery(session: Session, delivery_id: str) -> WebhookDelivery | None:
    """Due at once, with all its attempts; None while an attempt of it is under way."""
    statement = (
        update(WebhookDelivery)
        .where(WebhookDelivery.id == delivery_id, unleased())
        .values(
            status=DeliveryStatus.PENDING.value,
            attempts=0,
            available_at=now(),
            lease_until=None,
            finished_at=None,
            last_status=None,
            last_error=None,
        )
        .returning(WebhookDelivery)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()


def unleased() -> ColumnElement[bool]:
    """True of a delivery that no worker is sending."""
    return or_(WebhookDelivery.lease_until.is_(None), WebhookDelivery.lease_until < now())


def _of(tenant: str, endpoint_id: str) -> tuple[ColumnElement[bool], ...]:
    return (WebhookEndpoint.tenant == tenant, WebhookEndpoint.id == endpoint_id)
