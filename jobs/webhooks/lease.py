"""The worker's operations on the outbox: claim a message, and record the result.

As for jobs, a claim has a lease and a fence, a write that changes no row returns False, and all times are of the
database's clock. If a worker dies while it sends, its lease ends, and the message is sent again with the same
``webhook-id``: at least once.
"""

from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.orm import Session

from jobs.credentials import Vault
from jobs.kit.errors import CredentialUnreadable
from jobs.kit.states import DeliveryStatus
from jobs.kit.storable import storable_text
from jobs.repository import webhook_queue
from jobs.repository.database import Database
from jobs.repository.models import WebhookEndpoint
from jobs.settings import Settings
from jobs.webhooks.retries import delay_seconds

_SMALLEST_LEASE_SECONDS: Final = 15.0
_LEASES_PER_TIMEOUT: Final = 3.0


@dataclass(frozen=True, kw_only=True)
class DeliveryClaim:
    """The right to make one attempt of one delivery. ``secrets``: newest first; empty if they can not be decrypted."""

    delivery_id: str
    endpoint_id: str
    type: str
    fence: int
    attempt: int
    url: str
    body: bytes
    secrets: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class Refusal:
    """Why an attempt did not succeed. ``error`` is for the tenant and contains nothing of the response body.

    ``gone``: the receiver wants no more messages; ``retry_after``: the seconds that it asked for.
    """

    error: str
    http_status: int | None = None
    retry_after: float = 0.0
    gone: bool = False


class DeliveryLeases:
    """Claims deliveries for workers and writes their results. Methods are transactions; all raise Unavailable."""

    def __init__(self, database: Database, vault: Vault, settings: Settings) -> None:
        self._database = database
        self._vault = vault
        self._settings = settings

    @property
    def lease_seconds(self) -> float:
        """How long an attempt belongs to its worker: several times the time that it may take."""
        return max(_SMALLEST_LEASE_SECONDS, _LEASES_PER_TIMEOUT * self._settings.webhook_timeout_seconds)

    def claim(self) -> DeliveryClaim | None:
        """Claim the delivery that has been due longest."""
        with self._database.transaction() as session:
            row = webhook_queue.claim_due(session, self.lease_seconds, self._settings.webhook_max_attempts)
            if row is None:
                return None
            endpoint = webhook_queue.load_sealed(session, row.endpoint_id)
            return DeliveryClaim(
                delivery_id=row.id,
                endpoint_id=row.endpoint_id,
                type=row.type,
                fence=row.fence,
                attempt=row.attempts,
                url=endpoint.url,
                body=row.payload.encode(),
                secrets=self._unsealed(endpoint.secrets),
            )

    def succeed(self, claim: DeliveryClaim, http_status: int) -> bool:
        """End the delivery as succeeded."""
        with self._database.transaction() as session:
            # The endpoint is locked first, as ``jobs.repository.webhook_queue`` asks for.
            endpoint = webhook_queue.lock_endpoint(session, claim.endpoint_id)
            done = DeliveryStatus.SUCCEEDED
            landed = webhook_queue.settle(
                session, claim.delivery_id, claim.fence, done, http_status=http_status, error=None
            )
            if landed and endpoint is not None:
                webhook_queue.forget_failures(session, endpoint)
            return landed

    def refuse(self, claim: DeliveryClaim, refusal: Refusal) -> bool:
        """Record a refusal: the next attempt, or failure after the last one. This may disable the endpoint."""
        with self._database.transaction() as session:
            endpoint = webhook_queue.lock_endpoint(session, claim.endpoint_id)
            over = refusal.gone or claim.attempt >= self._settings.webhook_max_attempts
            landed = self._give_up(session, claim, refusal) if over else self._postpone(session, claim, refusal)
            if landed and endpoint is not None:
                self._judge(session, endpoint, refusal)
            return landed

    def tidy(self) -> int:
        """Fail deliveries that will never be sent. Return how many there were; retention deletes them later."""
        with self._database.transaction() as session:
            return webhook_queue.give_up(session, self._settings.webhook_max_attempts)

    def _give_up(self, session: Session, claim: DeliveryClaim, refusal: Refusal) -> bool:
        return webhook_queue.settle(
            session,
            claim.delivery_id,
            claim.fence,
            DeliveryStatus.FAILED,
            http_status=refusal.http_status,
            error=storable_text(refusal.error),
        )

    def _postpone(self, session: Session, claim: DeliveryClaim, refusal: Refusal) -> bool:
        first = self._settings.webhook_retry_seconds
        return webhook_queue.postpone(
            session,
            claim.delivery_id,
            claim.fence,
            delay_seconds=delay_seconds(claim.attempt, first_seconds=first, retry_after=refusal.retry_after),
            http_status=refusal.http_status,
            error=storable_text(refusal.error),
        )

    def _judge(self, session: Session, endpoint: WebhookEndpoint, refusal: Refusal) -> None:
        patience = self._settings.webhook_disable_after_seconds
        if refusal.gone:
            webhook_queue.disable(session, endpoint, "gone")
        # Called first, because it also records the failure. A patience of 0 means "never disable".
        elif webhook_queue.has_failed_for(session, endpoint, patience) and patience > 0:
            webhook_queue.disable(session, endpoint, "failing")

    def _unsealed(self, sealed: tuple[bytes, ...]) -> tuple[str, ...]:
        try:
            return tuple(self._vault.unseal(secret) for secret in sealed)
        except CredentialUnreadable:
            return ()
