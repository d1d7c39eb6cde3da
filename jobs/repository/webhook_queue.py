"""SQL of the workers' side of webhooks: claim a delivery, settle it, give up on what can not be delivered.

A transaction that locks an endpoint and one of its deliveries locks the endpoint first, as a deletion does. Otherwise
two transactions could block each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from jobs.kit.states import DeliveryStatus
from jobs.repository.clock import now
from jobs.repository.models import WebhookDelivery, WebhookEndpoint
from jobs.repository.webhooks import after, unleased

_BATCH: Final = 500
_PENDING: Final = WebhookDelivery.status == DeliveryStatus.PENDING


@dataclass(frozen=True)
class Sealed:
    """The URL of an endpoint, and the secrets that sign for it now, newest first, encrypted."""

    url: str
    secrets: tuple[bytes, ...]


def claim_due(session: Session, lease_seconds: float, max_attempts: int) -> WebhookDelivery | None:
    """Begin the next attempt of the delivery that has been due longest: attempt + 1, fence + 1, a lease.

    Rows that another claimer has locked are skipped. So are endpoints to which a delivery is being sent: a receiver
    that does not answer occupies one sender, not all of them.
    """
    other = aliased(WebhookDelivery)
    busy = exists().where(other.endpoint_id == WebhookDelivery.endpoint_id, other.lease_until > now())
    due = (
        select(WebhookDelivery.id)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(_PENDING, WebhookDelivery.available_at <= now(), WebhookDelivery.attempts < max_attempts)
        .where(WebhookEndpoint.enabled, ~busy)
        .order_by(WebhookDelivery.available_at, WebhookDelivery.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=WebhookDelivery)
    )
    delivery_id = session.scalars(due).one_or_none()
    if delivery_id is None:
        return None
    return _update(
        session,
        WebhookDelivery.id == delivery_id,
        values={
            "fence": WebhookDelivery.fence + 1,
            "attempts": WebhookDelivery.attempts + 1,
            "attempted_at": now(),
            "lease_until": after(lease_seconds),
        },
    )


def load_sealed(session: Session, endpoint_id: str) -> Sealed:
    """Load the endpoint's URL and its valid secrets."""
    row = WebhookEndpoint
    still = row.previous_until > now()
    found = session.execute(
        select(row.url, row.secret, row.previous_secret, still.label("still")).where(row.id == endpoint_id)
    ).one()
    previous = (found.previous_secret,) if found.still and found.previous_secret is not None else ()
    return Sealed(url=found.url, secrets=(found.secret, *previous))


def settle(
    session: Session,
    delivery_id: str,
    fence: int,
    status: DeliveryStatus,
    *,
    http_status: int | None,
    error: str | None,
) -> bool:
    """End the delivery. False: the claim with this fence is lost."""
    ended = {"status": status.value, "finished_at": func.clock_timestamp()}
    return _update(session, *_fenced(delivery_id, fence), values=_result(http_status, error) | ended) is not None


def postpone(
    session: Session, delivery_id: str, fence: int, *, delay_seconds: float, http_status: int | None, error: str
) -> bool:
    """Set the time of the next attempt. False: the claim with this fence is lost."""
    later = {"available_at": after(delay_seconds)}
    return _update(session, *_fenced(delivery_id, fence), values=_result(http_status, error) | later) is not None


def lock_endpoint(session: Session, endpoint_id: str) -> WebhookEndpoint | None:
    """Lock the endpoint against other changes; None when it was deleted. Jobs can still write messages to it."""
    locked = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id).with_for_update(key_share=True)
    return session.scalars(locked).one_or_none()


def has_failed_for(session: Session, endpoint: WebhookEndpoint, seconds: float) -> bool:
    """Record a failure of a locked endpoint. Return whether it has only failed for longer than ``seconds``."""
    # The first failure only starts the time.
    if endpoint.failing_since is None:
        _change(session, endpoint, {"failing_since": now()})
        return False
    long_ago = select(WebhookEndpoint.failing_since < now() - timedelta(seconds=seconds))
    return bool(session.scalars(long_ago.where(WebhookEndpoint.id == endpoint.id)).one())


def forget_failures(session: Session, endpoint: WebhookEndpoint) -> None:
    """Record a success of a locked endpoint."""
    if endpoint.failing_since is not None:
        _change(session, endpoint, {"failing_since": None})


def disable(session: Session, endpoint: WebhookEndpoint, reason: str) -> None:
    """Disable a locked endpoint, so that it gets no more messages."""
    if endpoint.enabled:
        _change(session, endpoint, {"enabled": False, "disabled_reason": reason})


def give_up(session: Session, max_attempts: int) -> int:
    """Fail deliveries to disabled endpoints, and last attempts whose worker died. Return how many there were."""
    hopeless = (
        select(WebhookDelivery.id)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(_PENDING, unleased(), or_(~WebhookEndpoint.enabled, WebhookDelivery.attempts >= max_attempts))
        .limit(_BATCH)
        .with_for_update(skip_locked=True, of=WebhookDelivery)
    )
    ids = session.scalars(hopeless).all()
    if not ids:
        return 0
    # The error of an earlier attempt says more than this text.
    reason = func.coalesce(
        WebhookDelivery.last_error, "The webhook was disabled, or its sender died, before an answer."
    )
    ended = {"status": DeliveryStatus.FAILED.value, "finished_at": func.clock_timestamp(), "lease_until": None}
    session.execute(update(WebhookDelivery).where(WebhookDelivery.id.in_(ids)).values(last_error=reason, **ended))
    return len(ids)


def purge(session: Session, keep_seconds: float, limit: int) -> int:
    """Delete up to ``limit`` deliveries that ended more than ``keep_seconds`` ago. Return how many there were."""
    old = (
        select(WebhookDelivery.id)
        .where(WebhookDelivery.finished_at < now() - timedelta(seconds=keep_seconds))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids: Sequence[str] = session.scalars(old).all()
    if ids:
        session.execute(delete(WebhookDelivery).where(WebhookDelivery.id.in_(ids)))
    return len(ids)


def _fenced(delivery_id: str, fence: int) -> tuple[ColumnElement[bool], ...]:
    return (WebhookDelivery.id == delivery_id, WebhookDelivery.fence == fence, _PENDING)


def _result(http_status: int | None, error: str | None) -> dict[str, Any]:
    return {"lease_until": None, "last_status": http_status, "last_error": error}


def _change(session: Session, endpoint: WebhookEndpoint, values: dict[str, Any]) -> None:
    statement = update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint.id)
    session.execute(statement.values({"version": WebhookEndpoint.version + 1, **values}))


def _update(session: Session, *where: ColumnElement[bool], values: dict[str, Any]) -> WebhookDelivery | None:
    statement = (
        update(WebhookDelivery)
        .where(*where)
        .values(values)
        .returning(WebhookDelivery)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()
