"""The delivery of webhook messages: a few threads in the sweeper process, where they delay no job and no heartbeat."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Protocol

import structlog

from jobs.credentials import Vault
from jobs.kit.errors import InstallationError, Unavailable
from jobs.repository.database import Database
from jobs.settings import Settings
from jobs.webhooks.addresses import address_policy
from jobs.webhooks.lease import DeliveryClaim, DeliveryLeases, Refusal
from jobs.webhooks.signing import signed_headers
from worker.webhooks.resolving import SystemResolver
from worker.webhooks.transport import Answer, Messenger, Undeliverable

_IDLE_SECONDS: Final = 1.0
_TIDY_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 3.0
_CONNECTIONS: Final = 2
_GONE: Final = 410
_FIXED_HEADERS: Final = {"Content-Type": "application/json", "User-Agent": "Quantry-Webhooks/1"}

logger = structlog.get_logger(__name__)


class Poster(Protocol):
    """Something that posts messages, such as a :class:`Messenger`."""

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Post ``body`` and return the receiver's answer. Raises: Undeliverable."""
        ...


@dataclass(frozen=True)
class _Sent:
    """One attempt: its outcome, whether that was stored (``landed``), and the HTTP status of the receiver."""

    outcome: str
    landed: bool
    http_status: int | None = None


class Deliverer:
    """Delivers messages: :meth:`deliver_next` in the caller's thread, or :meth:`start` in threads of its own.

    One thread at a time asks the database for a message. The others send, or wait for their turn to ask.
    """

    def __init__(
        self,
        leases: DeliveryLeases,
        messenger: Poster,
        *,
        concurrency: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._messenger = messenger
        self._clock = clock
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        self._next_tidy = clock()
        names = (f"webhooks-{number}" for number in range(concurrency))
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]

    def start(self) -> None:
        """Start to deliver; return at once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin no new attempt, and wait a few seconds for running ones; the lease of an unfinished one runs out."""
        self._stopping.set()
        until = self._clock() + _STOP_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - self._clock()))

    def deliver_next(self) -> str | None:
        """Claim a message and make one attempt; return its outcome, or None if none was due. Raises: Unavailable."""
        claimed_at = self._clock()
        claim = self._leases.claim()
        return None if claim is None else self._attempt(claim, claimed_at)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._turn:
                    claimed_at, claim = self._clock(), self._next_claim()
                if claim is not None:
                    self._attempt(claim, claimed_at)
            except Unavailable:
                logger.warning("webhook_claim_failed", reason="the database does not answer")
                self._stopping.wait(_IDLE_SECONDS)
            except Exception:  # one bad message must not end this thread; its lease runs out
                logger.exception("webhook_attempt_crashed")
                self._stopping.wait(_IDLE_SECONDS)

    def _next_claim(self) -> DeliveryClaim | None:
        if self._stopping.is_set():
            return None
        if self._clock() >= self._next_tidy:
            self._next_tidy = self._clock() + _TIDY_SECONDS
            given_up = self._leases.tidy()
            if given_up:
                logger.info("webhooks_given_up", messages=given_up)
        claim = self._leases.claim()
        if claim is None:
            self._stopping.wait(_IDLE_SECONDS)
        return claim

    def _attempt(self, claim: DeliveryClaim, claimed_at: float) -> str:
        ids = {"message_id": claim.delivery_id, "webhook_id": claim.endpoint_id}
        with structlog.contextvars.bound_contextvars(**ids, attempt=claim.attempt):
            if self._clock() - claimed_at > self._leases.lease_seconds / 2:
                # This process was frozen for a while: the lease may end during the attempt.
                logger.warning("webhook_claim_dropped")
                return "late"
            sent = self._send(claim)
            logger.info("webhook_attempt_ended", type=claim.type, outcome=sent.outcome, http_status=sent.http_status)
        return sent.outcome if sent.landed else "lost"

    def _send(self, claim: DeliveryClaim) -> _Sent:
        if not claim.secrets:
            error = "Not sent: this worker does not have the key that the secret is stored under. Tell the operator."
            return _Sent("unreadable", landed=self._leases.refuse(claim, Refusal(error)))
        headers = signed_headers(claim.delivery_id, int(time.time()), claim.body, claim.secrets)
        try:
            answer = self._messenger.post(claim.url, {**_FIXED_HEADERS, **headers}, claim.body)
        except Undeliverable as error:
            return _Sent("undeliverable", landed=self._leases.refuse(claim, Refusal(str(error))))
        refusal = refusal_of(answer, datetime.now(UTC))
        if refusal is None:
            landed = self._leases.succeed(claim, answer.status)
            return _Sent("succeeded", landed=landed, http_status=answer.status)
        outcome = "gone" if refusal.gone else "refused"
        return _Sent(outcome, landed=self._leases.refuse(claim, refusal), http_status=answer.status)


@contextmanager
def delivering(database_url: str, settings: Settings) -> Iterator[None]:
    """Deliver in the background during the block. A bad webhook setting disables only webhooks, not the sweeper."""
    database = Database(database_url, pool_size=_CONNECTIONS)
    try:
        deliverer = open_deliverer(database, settings)
    except (InstallationError, OSError) as error:
        logger.error("webhooks_disabled", reason=str(error))
        yield
        return
    deliverer.start()
    try:
        yield
    finally:
        deliverer.stop()
        database.close()


def open_deliverer(database: Database, settings: Settings) -> Deliverer:
    """Return a deliverer for the settings; with a concurrency of 0 it delivers nothing.

    Raises:
        InstallationError: the key of stored secrets is unusable.
        OSError: QUANTRY_WEBHOOK_CA_FILE can not be read.
    """
    messenger = Messenger(
        policy=address_policy(allow_private=settings.webhook_allow_private, networks=settings.webhook_networks),
        resolve=SystemResolver(),
        timeout_seconds=settings.webhook_timeout_seconds,
        allow_http=settings.webhook_allow_private,
        ca_file=settings.webhook_ca_file,
    )
    leases = DeliveryLeases(database, Vault.open(settings), settings)
    return Deliverer(leases, messenger, concurrency=settings.webhook_concurrency)


def refusal_of(answer: Answer, now: datetime) -> Refusal | None:
    """Return why ``answer`` is no success, or None for a status of 2xx."""
    status = answer.status
    if 200 <= status < 300:
        return None
    reason = f"The receiver answered with HTTP status {status}."
    if 300 <= status < 400:
        reason = f"The receiver answered with HTTP status {status}; redirects are not followed."
    return Refusal(reason, status, retry_after=_seconds(answer.retry_after, now), gone=status == _GONE)


def _seconds(retry_after: str | None, now: datetime) -> float:
    """Return ``Retry-After`` in seconds, from a number or a date; 0 for anything else."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        # A receiver may send any number of digits; nine are more than 30 years.
        return float(text[:9])
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError):  # not a date, or one without a time zone
        return 0.0
