"""SQL of webhook endpoints and their deliveries for tenants, and the insert of the outbox."""

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
    """Return the database's time."""
    now: datetime = session.scalars(select(func.clock_timestamp())).one()
    return now


def after(seconds: float) -> ColumnElement[Any]:
    """Return the time ``seconds`` from now."""
    return now() + timedelta(seconds=seconds)


def hold_subscribers(session: Session, tenant: str, event_type: str) -> Sequence[str]:
    """Lock enabled endpoints that subscribe to this event; none can be deleted until the transaction ends.

    An endpoint that is just being deleted is skipped: a job's transaction never waits for that of a webhook.
    """
    wanted = (
        WebhookEndpoint.tenant == tenant,
        WebhookEndpoint.enabled,
        WebhookEndpoint.events.contains([event_type]),
    )
    held = select(WebhookEndpoint.id).where(*wanted).with_for_update(read=True, key_share=True, skip_locked=True)
    return session.scalars(held).all()


def add_deliveries(session: Session, rows: Sequence[WebhookDelivery]) -> None:
    """Insert and flush new messages."""
    session.add_all(rows)
    session.flush()


def insert(session: Session, row: WebhookEndpoint) -> None:
    """Insert a new endpoint, flushed and read back."""
    session.add(row)
    session.flush()
    session.refresh(row)


def lock_tenant(session: Session, tenant: str) -> None:
    """Lock the tenant's list of endpoints, so that only one transaction counts and adds at a time."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"webhooks\n{tenant}", 0))))


def count(session: Session, tenant: str) -> int:
    """Return the number of the tenant's endpoints."""
    return session.scalars(select(func.count()).where(WebhookEndpoint.tenant == tenant)).one()


def find(session: Session, tenant: str, endpoint_id: str) -> WebhookEndpoint | None:
    """Return one of the tenant's endpoints, without its secrets."""
    return session.scalars(select(WebhookEndpoint).where(*_of(tenant, endpoint_id))).one_or_none()


def page(
    session: Session, tenant: str, *, limit: int, after_key: tuple[datetime, str] | None
) -> Sequence[WebhookEndpoint]:
    """Return up to ``limit`` endpoints, newest first, that come after the cursor."""
    row = WebhookEndpoint
    statement = select(row).where(row.tenant == tenant)
    if after_key is not None:
        statement = statement.where(tuple_(row.created_at, row.id) < after_key)
    return session.scalars(statement.order_by(row.created_at.desc(), row.id.desc()).limit(limit)).all()


def change(session: Session, tenant: str, endpoint_id: str, values: Mapping[str, Any]) -> WebhookEndpoint | None:
    """Change columns of an endpoint and return it; None when the tenant has no such endpoint."""
    statement = (
        update(WebhookEndpoint)
        .where(*_of(tenant, endpoint_id))
        .values({"version": WebhookEndpoint.version + 1, **values})
        .returning(WebhookEndpoint)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()


def delete(session: Session, tenant: str, endpoint_id: str) -> bool:
    """Delete an endpoint and all its deliveries; False when there is none."""
    statement = delete_from(WebhookEndpoint).where(*_of(tenant, endpoint_id)).returning(WebhookEndpoint.id)
    return session.scalars(statement).one_or_none() is not None


def find_delivery(session: Session, tenant: str, endpoint_id: str, delivery_id: str) -> WebhookDelivery | None:
    """Return one delivery of one of the tenant's endpoints."""
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
    """Return up to ``limit`` deliveries, newest first, that come after the cursor."""
    row = WebhookDelivery
    statement = select(row).where(row.endpoint_id == endpoint_id)
    if status is not None:
        statement = statement.where(row.status == status)
    if after_key is not None:
        statement = statement.where(tuple_(row.created_at, row.id) < after_key)
    return session.scalars(statement.order_by(row.created_at.desc(), row.id.desc()).limit(limit)).all()


def restart_delivery(session: Session, delivery_id: str) -> WebhookDelivery | None:
    """Make a delivery due at once, with its full number of attempts; None while it is being sent."""
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
    """Return the condition for a delivery that no worker is sending."""
    return or_(WebhookDelivery.lease_until.is_(None), WebhookDelivery.lease_until < now())


def _of(tenant: str, endpoint_id: str) -> tuple[ColumnElement[bool], ...]:
    return (WebhookEndpoint.tenant == tenant, WebhookEndpoint.id == endpoint_id)
