"""The views of webhook endpoints and of their deliveries."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from jobs.kit.documents import WebhookMessage
from jobs.kit.states import DeliveryStatus
from jobs.kit.views import Described, Timestamp, View
from jobs.repository.models import WebhookDelivery, WebhookEndpoint

DisabledReason = Literal["requested", "gone", "failing"]


class WebhookView(View):
    """An endpoint. ``version`` is that of the row, for the ETag; it is not in the JSON."""

    id: Annotated[str, Field(examples=["wh_01"])]
    """Its id."""
    object: Literal["webhook.endpoint"] = "webhook.endpoint"
    """What this is."""
    url: Annotated[str, Field(examples=["https://example.com/hook"])]
    """Where messages are sent."""
    description: Annotated[str, Field(examples=["The team channel."])]
    """What it is for."""
    events: Annotated[tuple[str, ...], Field(examples=[("job.succeeded",)])]
    """The events that it gets."""
    enabled: bool
    """Whether it gets messages."""
    disabled_reason: DisabledReason | None
    """``requested`` by the tenant, ``gone`` (the receiver answered 410), or ``failing`` (the service saw only failures
    for days)."""
    failing_since: Timestamp | None
    """Since when every message has failed."""
    previous_secret_until: Timestamp | None
    """Until when the old secret also signs after a rotation."""
    created_at: Timestamp
    """When it was made."""
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

    secret: Annotated[str, Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])]
    """The secret that signs messages. It is not shown again."""


class DeliveryView(View):
    """One message to one endpoint."""

    id: Annotated[str, Field(examples=["msg_01"])]
    """Its ``webhook-id``."""
    object: Literal["webhook.delivery"] = "webhook.delivery"
    """What this is."""
    webhook_id: Annotated[str, Field(examples=["wh_01"])]
    """Its endpoint."""
    type: Annotated[str, Field(examples=["job.succeeded"])]
    """The event."""
    status: DeliveryStatus
    """Its state."""
    attempts: Annotated[int, Field(examples=[1])]
    """The attempts since it was last queued."""
    last_status: Annotated[int | None, Field(examples=[200])]
    """The HTTP status of the last response, if there was one."""
    last_error: Annotated[str | None, Field(examples=["timeout"])]
    """Why the last attempt failed."""
    created_at: Timestamp
    """When the event happened."""
    last_attempt_at: Timestamp | None
    """When it was last sent."""
    next_attempt_at: Timestamp | None
    """When it is sent again. Null unless it is pending."""
    finished_at: Timestamp | None
    """When it was delivered or given up."""
    payload: Annotated[dict[str, Any], Described(WebhookMessage)]
    """The message."""

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
