"""The views of webhook endpoints and of their deliveries."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from jobs.kit.states import DeliveryStatus
from jobs.kit.views import Timestamp, View
from jobs.repository.models import WebhookDelivery, WebhookEndpoint

DisabledReason = Literal["requested", "gone", "failing"]


class WebhookView(View):
    """An endpoint. ``disabled_reason``: ``requested`` by the tenant, ``gone`` (the receiver answered 410), or
    ``failing`` (the service saw only failures for days).

    ``previous_secret_until``: until when the old secret also signs after a rotation; null without a rotation.
    ``version`` is that of the row, for the ETag; it is not in the JSON.
    """

    id: str
    object: Literal["webhook.endpoint"] = "webhook.endpoint"
    url: str
    description: str
    events: tuple[str, ...]
    enabled: bool
    disabled_reason: DisabledReason | None
    failing_since: Timestamp | None
    previous_secret_until: Timestamp | None
    created_at: Timestamp
    version: Annotated[int, Field(exclude=True)] = 0

    @property
    def etag(self) -> str:
        """A strong validator."""
        return f'"{self.version}"'

    @property
    def path(self) -> str:
        """The path of the endpoint."""
        return f"/v1/webhooks/{self.id}"


class WebhookWithSecretView(WebhookView):
    """An endpoint with its new secret, which is only shown this time."""

    secret: str


class DeliveryView(View):
    """One message to one endpoint. ``id`` is its ``webhook-id``; ``attempts`` counts since it was last (re)queued.

    ``next_attempt_at`` is set while it is pending. ``last_status`` is the HTTP status of the last response, if there
    was one.
    """

    id: str
    object: Literal["webhook.delivery"] = "webhook.delivery"
    webhook_id: str
    type: str
    status: DeliveryStatus
    attempts: int
    last_status: int | None
    last_error: str | None
    created_at: Timestamp
    last_attempt_at: Timestamp | None
    next_attempt_at: Timestamp | None
    finished_at: Timestamp | None
    payload: dict[str, Any]

    @property
    def path(self) -> str:
        """The path of the delivery."""
        return f"/v1/webhooks/{self.webhook_id}/deliveries/{self.id}"


def webhook_view(row: WebhookEndpoint) -> WebhookView:
    """Return the view of an endpoint's row."""
    return WebhookView.model_validate(_shown(row))


def webhook_with_secret(row: WebhookEndpoint, secret: str) -> WebhookWithSecretView:
    """Return the view of an endpoint's row with the decrypted secret."""
    return WebhookWithSecretView.model_validate({**_shown(row), "secret": secret})


def delivery_view(row: WebhookDelivery) -> DeliveryView:
    """Return the view of a delivery's row."""
    status = DeliveryStatus(row.status)
    return DeliveryView(
        id=row.id,
        webhook_id=row.endpoint_id,
        type=row.type,
        status=status,
        attempts=row.attempts,
        last_status=row.last_status,
        last_error=row.last_error,
        created_at=row.created_at,
        last_attempt_at=row.attempted_at,
        next_attempt_at=row.available_at if status is DeliveryStatus.PENDING else None,
        finished_at=row.finished_at,
        payload=json.loads(row.payload),
    )


def _shown(row: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": row.id,
        "url": row.url,
        "description": row.description,
        "events": row.events,
        "enabled": row.enabled,
        "disabled_reason": row.disabled_reason,
        "failing_since": row.failing_since,
        "previous_secret_until": row.previous_until,
        "created_at": row.created_at,
        "version": row.version,
    }
