"""Writing messages in the transaction of the change that they report: both are committed, or neither is."""

from typing import Any

from sqlalchemy.orm import Session

from jobs.kit.ids import new_id
from jobs.kit.states import DeliveryStatus
from jobs.repository import webhooks
from jobs.repository.models import Job, Publication, WebhookDelivery
from jobs.repository.outbox_events import EVENT_TYPES, TEST_EVENT, job_data, payload, publication_data, test_data


def announce_job(session: Session, job: Job) -> None:
    """Announce the job's current status, if endpoints can subscribe to it."""
    _announce(session, job.tenant, f"job.{job.status}", job_data(job))


def announce_publication(session: Session, publication: Publication) -> None:
    """Announce the publication's current status, if endpoints can subscribe to it."""
    _announce(session, publication.tenant, f"publication.{publication.status}", publication_data(publication))


def queue_test(session: Session, endpoint_id: str) -> WebhookDelivery:
    """Queue a test message to one endpoint, even if it does not subscribe to it; flushed and read back."""
    row = _delivery(endpoint_id, TEST_EVENT, payload(TEST_EVENT, webhooks.moment(session), test_data(endpoint_id)))
    webhooks.add_deliveries(session, [row])
    # The database sets the times.
    session.refresh(row)
    return row


def _announce(session: Session, tenant: str, event_type: str, data: dict[str, Any]) -> None:
    if event_type not in EVENT_TYPES:
        return
    subscribers = webhooks.hold_subscribers(session, tenant, event_type)
    if subscribers:
        text = payload(event_type, webhooks.moment(session), data)
        webhooks.add_deliveries(session, [_delivery(endpoint_id, event_type, text) for endpoint_id in subscribers])


def _delivery(endpoint_id: str, event_type: str, text: str) -> WebhookDelivery:
    return WebhookDelivery(
        id=new_id("msg"), endpoint_id=endpoint_id, status=DeliveryStatus.PENDING.value, type=event_type, payload=text
    )
