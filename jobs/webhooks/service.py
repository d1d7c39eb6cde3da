"""The operations of tenants on webhooks. Each public method is one transaction and returns a frozen view."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from sqlalchemy.orm import Session

from jobs.credentials import Vault
from jobs.idempotency import IdempotentRequest
from jobs.kit import cursors
from jobs.kit.errors import InvalidState
from jobs.kit.ids import is_id, new_id
from jobs.kit.states import DeliveryStatus
from jobs.kit.views import Page
from jobs.repository import webhooks
from jobs.repository.database import Database
from jobs.repository.models import WebhookDelivery, WebhookEndpoint
from jobs.repository.outbox import queue_test
from jobs.settings import Settings
from jobs.webhooks.addresses import address_policy
from jobs.webhooks.errors import DeliveryNotFound, TooManyWebhooks, WebhookNotFound
from jobs.webhooks.requests import NewWebhook, WebhookChanges
from jobs.webhooks.signing import new_secret
from jobs.webhooks.urls import read_url
from jobs.webhooks.views import (
    DeliveryView,
    WebhookView,
    WebhookWithSecretView,
    delivery_view,
    webhook_view,
    webhook_with_secret,
)

_PATH = "/v1/webhooks"


class WebhookService:
    """The operations on webhooks. Every query is limited to ``tenant``; ids of others look missing.

    A POST raises IdempotencyConflict or IdempotencyInFlight if its Idempotency-Key is used by another request.
    """

    def __init__(self, database: Database, vault: Vault, settings: Settings) -> None:
        self._database = database
        self._vault = vault
        self._settings = settings

    def create(self, new: NewWebhook, *, tenant: str, idempotency_key: str | None = None) -> WebhookWithSecretView:
        """Create an endpoint with a secret, which is not shown again.

        Raises:
            InvalidRequest: messages can not be sent to this URL.
            TooManyWebhooks: the tenant has as many as a tenant may have.
        """
        self._check_url(new.url)

        def insert(session: Session) -> WebhookWithSecretView:
            # Two requests at the same time could otherwise both stay below the limit.
            webhooks.lock_tenant(session, tenant)
            if webhooks.count(session, tenant) >= self._settings.webhook_max_endpoints:
                raise TooManyWebhooks(self._settings.webhook_max_endpoints)
            secret = new_secret()
            row = WebhookEndpoint(
                id=new_id("wh"),
                tenant=tenant,
                url=new.url,
                description=new.description or "",
                events=list(new.events),
                secret=self._vault.seal(secret),
            )
            webhooks.insert(session, row)
            return webhook_with_secret(row, secret)

        return self._answer_with_secret(self._idempotent(tenant, "", idempotency_key, new), insert)

    def list(self, *, tenant: str, limit: int = 20, after: str | None = None) -> Page[WebhookView]:
        """List endpoints, newest first, by keyset on (created_at, id). Raises: InvalidQuery for a foreign cursor."""
        key = None if after is None else cursors.decode_job(after)
        with self._database.transaction() as session:
            found = webhooks.page(session, tenant, limit=limit + 1, after_key=key)
        views = tuple(webhook_view(row) for row in found[:limit])
        has_more = len(found) > limit
        cursor = cursors.encode_job(views[-1].created_at, views[-1].id) if has_more else None
        return Page(data=views, has_more=has_more, next_cursor=cursor)

    def get(self, endpoint_id: str, *, tenant: str) -> WebhookView:
        """Return an endpoint. Raises: WebhookNotFound."""
        with self._database.transaction() as session:
            return webhook_view(_find(session, tenant, endpoint_id))

    def change(self, endpoint_id: str, changes: WebhookChanges, *, tenant: str) -> WebhookView:
        """Change an endpoint. Raises: WebhookNotFound, InvalidRequest for the URL."""
        if changes.url is not None:
            self._check_url(changes.url)
        values: dict[str, Any] = changes.model_dump(exclude_unset=True)
        if changes.enabled is not None:
            values |= {"disabled_reason": None if changes.enabled else "requested", "failing_since": None}
        with self._database.transaction() as session:
            row = webhooks.change(session, tenant, endpoint_id, values) if is_id(endpoint_id) else None
            if row is None:
                raise WebhookNotFound
            return webhook_view(row)

    def delete(self, endpoint_id: str, *, tenant: str) -> None:
        """Delete an endpoint and its deliveries; a message being sent still arrives. Raises: WebhookNotFound."""
        with self._database.transaction() as session:
            if not is_id(endpoint_id) or not webhooks.delete(session, tenant, endpoint_id):
                raise WebhookNotFound

    def rotate(self, endpoint_id: str, *, tenant: str, idempotency_key: str | None = None) -> WebhookWithSecretView:
        """Make a new secret; the old one also signs for ``webhook_rotation_seconds``. Raises: WebhookNotFound."""
        # The id becomes a part of the key of idempotency, so it is checked before.
        _could_be(endpoint_id)

        def rotate(session: Session) -> WebhookWithSecretView:
            _find(session, tenant, endpoint_id)
            secret = new_secret()
            values = {
                # The column's value before this UPDATE.
                "previous_secret": WebhookEndpoint.secret,
                "previous_until": webhooks.after(self._settings.webhook_rotation_seconds),
                "secret": self._vault.seal(secret),
            }
            row = webhooks.change(session, tenant, endpoint_id, values)
            if row is None:
                raise WebhookNotFound
            return webhook_with_secret(row, secret)

        return self._answer_with_secret(self._idempotent(tenant, f"/{endpoint_id}/rotate", idempotency_key), rotate)

    def test(self, endpoint_id: str, *, tenant: str, idempotency_key: str | None = None) -> DeliveryView:
        """Queue a ``webhook.test`` message. Raises: WebhookNotFound, InvalidState if the endpoint is disabled."""
        _could_be(endpoint_id)

        def queue(session: Session) -> WebhookDelivery:
            _enabled(_find(session, tenant, endpoint_id))
            return queue_test(session, endpoint_id)

        return self._answer_with_delivery(self._idempotent(tenant, f"/{endpoint_id}/test", idempotency_key), queue)

    def list_deliveries(
        self,
        endpoint_id: str,
        *,
        tenant: str,
        limit: int = 20,
        after: str | None = None,
        status: DeliveryStatus | None = None,
    ) -> Page[DeliveryView]:
        """List deliveries, newest first. Raises: WebhookNotFound, InvalidQuery for a foreign cursor."""
        key = None if after is None else cursors.decode_job(after)
        with self._database.transaction() as session:
            _find(session, tenant, endpoint_id)
            found = webhooks.page_deliveries(session, endpoint_id, limit=limit + 1, after_key=key, status=status)
        views = tuple(delivery_view(row) for row in found[:limit])
        has_more = len(found) > limit
        cursor = cursors.encode_job(views[-1].created_at, views[-1].id) if has_more else None
        return Page(data=views, has_more=has_more, next_cursor=cursor)

    def get_delivery(self, endpoint_id: str, delivery_id: str, *, tenant: str) -> DeliveryView:
        """Return a delivery. Raises: WebhookNotFound, DeliveryNotFound."""
        with self._database.transaction() as session:
            _find(session, tenant, endpoint_id)
            return delivery_view(_find_delivery(session, tenant, endpoint_id, delivery_id))

    def redeliver(
        self, endpoint_id: str, delivery_id: str, *, tenant: str, idempotency_key: str | None = None
    ) -> DeliveryView:
        """Send a message again now, with its full number of attempts and its old ``webhook-id``.

        Raises:
            WebhookNotFound, DeliveryNotFound.
            InvalidState: the endpoint is disabled, or an attempt is under way.
        """
        _could_be(endpoint_id)
        if not is_id(delivery_id):
            raise DeliveryNotFound

        def restart(session: Session) -> WebhookDelivery:
            _enabled(_find(session, tenant, endpoint_id))
            _find_delivery(session, tenant, endpoint_id, delivery_id)
            row = webhooks.restart_delivery(session, delivery_id)
            if row is None:
                raise InvalidState("The message is being sent right now. Look again in a moment.", retry_after=5)
            return row

        idempotent = self._idempotent(tenant, f"/{endpoint_id}/deliveries/{delivery_id}/redeliver", idempotency_key)
        return self._answer_with_delivery(idempotent, restart)

    def _check_url(self, url: str) -> None:
        policy = address_policy(
            allow_private=self._settings.webhook_allow_private, networks=self._settings.webhook_networks
        )
        read_url(url, policy, allow_http=self._settings.webhook_allow_private)

    def _idempotent(self, tenant: str, tail: str, key: str | None, body: BaseModel | None = None) -> IdempotentRequest:
        kept = self._settings.idempotency_seconds
        return IdempotentRequest.of(tenant, f"POST {_PATH}{tail}", key, body, keep_seconds=kept)

    def _answer_with_secret(
        self, idempotent: IdempotentRequest, act: Callable[[Session], WebhookWithSecretView]
    ) -> WebhookWithSecretView:
        """Return ``act``'s answer, or the stored answer of the same key. The stored secret is encrypted."""
        with self._database.transaction() as session:
            stored = idempotent.replay(session, WebhookWithSecretView)
            if stored is not None:
                return stored.model_copy(update={"secret": self._vault.unseal(stored.secret.encode())})
            view = act(session)
            idempotent.remember(session, view.model_copy(update={"secret": self._vault.seal(view.secret).decode()}))
        return view

    def _answer_with_delivery(
        self, idempotent: IdempotentRequest, act: Callable[[Session], WebhookDelivery]
    ) -> DeliveryView:
        with self._database.transaction() as session:
            stored = idempotent.replay(session, DeliveryView)
            if stored is not None:
                return stored
            view = delivery_view(act(session))
            idempotent.remember(session, view)
        return view


def _could_be(endpoint_id: str) -> None:
    """Refuse a malformed id before the database is used. Raises: WebhookNotFound."""
    if not is_id(endpoint_id):
        raise WebhookNotFound


def _find(session: Session, tenant: str, endpoint_id: str) -> WebhookEndpoint:
    row = webhooks.find(session, tenant, endpoint_id) if is_id(endpoint_id) else None
    if row is None:
        raise WebhookNotFound
    return row


def _find_delivery(session: Session, tenant: str, endpoint_id: str, delivery_id: str) -> WebhookDelivery:
    row = webhooks.find_delivery(session, tenant, endpoint_id, delivery_id) if is_id(delivery_id) else None
    if row is None:
        raise DeliveryNotFound
    return row


def _enabled(row: WebhookEndpoint) -> None:
    if not row.enabled:
        raise InvalidState('The webhook is disabled. Enable it first: PATCH it with {"enabled": true}.')
