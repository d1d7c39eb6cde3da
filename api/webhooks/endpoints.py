"""The endpoints ``/v1/webhooks``: where events are sent, and the result of each message."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from starlette.responses import Response

from api.deps import Cursor, IdempotencyKey, IfNoneMatch, Limit, NoBody, State, Tenant, json_body
from api.negotiation import none_match
from api.openapi import json_body_of
from api.responses import json_view
from jobs.kit.states import DeliveryStatus
from jobs.kit.views import Page
from jobs.webhooks.requests import NewWebhook, WebhookChanges
from jobs.webhooks.service import WebhookService
from jobs.webhooks.views import DeliveryView, WebhookView, WebhookWithSecretView

_POLL_SECONDS = "2"


async def _webhooks(state: State) -> WebhookService:
    return state.webhooks


Webhooks = Annotated[WebhookService, Depends(_webhooks)]
WebhookId = Annotated[str, Path(description="A webhook's id.")]
DeliveryId = Annotated[str, Path(description="A delivery's id, which is the webhook-id of its message.")]

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


@router.post(
    "", status_code=201, responses={201: {"model": WebhookWithSecretView}}, openapi_extra=json_body_of(NewWebhook)
)
def create_webhook(
    new: Annotated[NewWebhook, json_body(NewWebhook)],
    webhooks: Webhooks,
    tenant: Tenant,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Send events to a URL. The response has the secret that signs the messages; it is not shown again."""
    view = webhooks.create(new, tenant=tenant, idempotency_key=idempotency_key)
    return json_view(view, 201, {**_secret_headers(view), "Location": view.path})


@router.get("", responses={200: {"model": Page[WebhookView]}})
def list_webhooks(webhooks: Webhooks, tenant: Tenant, limit: Limit = 20, after: Cursor = None) -> Response:
    """List webhooks, newest first, without their secrets."""
    return json_view(webhooks.list(tenant=tenant, limit=limit, after=after))


@router.get("/{webhook_id}", responses={200: {"model": WebhookView}, 304: {"description": "Unchanged"}})
def get_webhook(
    webhook_id: WebhookId,
    webhooks: Webhooks,
    tenant: Tenant,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return one webhook. Send its ETag as If-None-Match to get 304 while nothing changed."""
    view = webhooks.get(webhook_id, tenant=tenant)
    if not none_match(if_none_match, view.etag):
        return Response(status_code=304, headers=_headers(view))
    return json_view(view, headers=_headers(view))


@router.patch("/{webhook_id}", responses={200: {"model": WebhookView}}, openapi_extra=json_body_of(WebhookChanges))
def change_webhook(
    webhook_id: WebhookId,
    changes: Annotated[WebhookChanges, json_body(WebhookChanges)],
    webhooks: Webhooks,
    tenant: Tenant,
) -> Response:
    """Change the URL, the events or the description, or disable and enable it. A disabled webhook gets no messages."""
    view = webhooks.change(webhook_id, changes, tenant=tenant)
    return json_view(view, headers=_headers(view))


@router.delete("/{webhook_id}", status_code=204)
def delete_webhook(webhook_id: WebhookId, webhooks: Webhooks, tenant: Tenant) -> Response:
    """Delete a webhook, its secret and its deliveries."""
    webhooks.delete(webhook_id, tenant=tenant)
    return Response(status_code=204)


@router.post("/{webhook_id}/rotate", responses={200: {"model": WebhookWithSecretView}})
def rotate_secret(
    webhook_id: WebhookId,
    _body: NoBody,
    webhooks: Webhooks,
    tenant: Tenant,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Replace the secret. The old one also signs until ``previous_secret_until``. Takes no body, or ``{}``."""
    view = webhooks.rotate(webhook_id, tenant=tenant, idempotency_key=idempotency_key)
    return json_view(view, headers=_secret_headers(view))


@router.post("/{webhook_id}/test", status_code=202, responses={202: {"model": DeliveryView}})
def send_test(
    webhook_id: WebhookId,
    _body: NoBody,
    webhooks: Webhooks,
    tenant: Tenant,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Send a ``webhook.test`` message, also if the webhook does not subscribe to it. Takes no body, or ``{}``."""
    return _accepted(webhooks.test(webhook_id, tenant=tenant, idempotency_key=idempotency_key))


@router.get("/{webhook_id}/deliveries", responses={200: {"model": Page[DeliveryView]}})
def list_deliveries(
    webhook_id: WebhookId,
    webhooks: Webhooks,
    tenant: Tenant,
    *,
    limit: Limit = 20,
    after: Cursor = None,
    status: Annotated[DeliveryStatus | None, Query(description="Only messages with this status.")] = None,
) -> Response:
    """List the messages to this webhook, newest first: the attempts, the result, and the time of the next attempt."""
    return json_view(webhooks.list_deliveries(webhook_id, tenant=tenant, limit=limit, after=after, status=status))


@router.get("/{webhook_id}/deliveries/{delivery_id}", responses={200: {"model": DeliveryView}})
def get_delivery(webhook_id: WebhookId, delivery_id: DeliveryId, webhooks: Webhooks, tenant: Tenant) -> Response:
    """Return one message."""
    return json_view(webhooks.get_delivery(webhook_id, delivery_id, tenant=tenant))


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=202, responses={202: {"model": DeliveryView}}
)
def redeliver(
    webhook_id: WebhookId,
    delivery_id: DeliveryId,
    _body: NoBody,
    webhooks: Webhooks,
    tenant: Tenant,
    *,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Send a message again at once, with the same webhook-id and all its attempts. Takes no body, or ``{}``."""
    return _accepted(webhooks.redeliver(webhook_id, delivery_id, tenant=tenant, idempotency_key=idempotency_key))


def _headers(view: WebhookView) -> dict[str, str]:
    return {"ETag": view.etag, "Cache-Control": "private, no-cache"}


def _secret_headers(view: WebhookView) -> dict[str, str]:
    # No cache may store a secret.
    return {"ETag": view.etag, "Cache-Control": "no-store"}


def _accepted(view: DeliveryView) -> Response:
    return json_view(view, 202, {"Retry-After": _POLL_SECONDS, "Location": view.path})
