"""``Quantry(…).webhooks``: the URLs to which the service sends events, and the deliveries of its messages."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from quantry.results import Result


class Webhook(Result):
    """A webhook. ``secret`` is set only in the answers that create a secret."""

    id: str
    url: str
    description: str
    events: tuple[str, ...]
    enabled: bool
    disabled_reason: str | None = None
    failing_since: datetime | None = None
    previous_secret_until: datetime | None = None
    created_at: datetime
    secret: str | None = None


class Delivery(Result):
    """One message to one webhook; ``id`` is its ``webhook-id``."""

    id: str
    webhook_id: str
    type: str
    status: str
    attempts: int
    last_status: int | None = None
    last_error: str | None = None
    created_at: datetime
    last_attempt_at: datetime | None = None
    next_attempt_at: datetime | None = None
    finished_at: datetime | None = None
    payload: dict[str, Any]


class Webhooks:
    """The webhooks of one service. Every method can raise :class:`quantry.errors.QuantryError`."""

    def __init__(
        self,
        *,
        json: Callable[..., dict[str, Any]],
        pages: Callable[[str, Mapping[str, str | int]], Iterator[dict[str, Any]]],
        send: Callable[..., Any],
    ) -> None:
        self._json = json
        self._pages = pages
        self._send = send

    def add(self, url: str, *, events: Sequence[str] = (), description: str | None = None) -> Webhook:
        """Create a webhook for ``events`` (default: the ends of jobs and publications). Store its ``secret``."""
        body: dict[str, Any] = {"url": url}
        if events:
            body["events"] = list(events)
        if description is not None:
            body["description"] = description
        return Webhook.model_validate(self._json("POST", "/v1/webhooks", json=body))

    def list(self) -> Iterator[Webhook]:
        """Yield all webhooks, newest first."""
        return map(Webhook.model_validate, self._pages("/v1/webhooks", {}))

    def get(self, webhook_id: str) -> Webhook:
        """Return the webhook as it is now."""
        return Webhook.model_validate(self._json("GET", f"/v1/webhooks/{webhook_id}"))

    def change(self, webhook_id: str, **fields: Any) -> Webhook:
        """Change ``url``, ``events``, ``description`` or ``enabled``."""
        return Webhook.model_validate(self._json("PATCH", f"/v1/webhooks/{webhook_id}", json=fields))

    def remove(self, webhook_id: str) -> None:
        """Delete a webhook and its deliveries."""
        self._send("DELETE", f"/v1/webhooks/{webhook_id}")

    def rotate(self, webhook_id: str) -> Webhook:
        """Create a new ``secret``. Until ``previous_secret_until``, messages are signed with the old one too."""
        return Webhook.model_validate(self._json("POST", f"/v1/webhooks/{webhook_id}/rotate"))

    def test(self, webhook_id: str) -> Delivery:
        """Send a ``webhook.test`` message."""
        return Delivery.model_validate(self._json("POST", f"/v1/webhooks/{webhook_id}/test"))

    def deliveries(self, webhook_id: str, *, status: str | None = None) -> Iterator[Delivery]:
        """Yield its messages, newest first; optionally only the ``pending``, ``succeeded`` or ``failed`` ones."""
        params = {} if status is None else {"status": status}
        return map(Delivery.model_validate, self._pages(f"/v1/webhooks/{webhook_id}/deliveries", params))

    def redeliver(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a message again, with the same id."""
        path = f"/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver"
        return Delivery.model_validate(self._json("POST", path))
