"""The publisher: a thread of each worker process, so that a push to the Hub does not wait for a long job."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from jobs.credentials import CredentialService
from jobs.kit.errors import Unavailable
from jobs.publications.lease import PublicationClaim
from worker.claims.heartbeat import ClaimHeartbeat
from worker.claims.process_lock import hold_process_lock
from worker.outcomes import Outcome
from worker.publishing.attempt import PublishAttempt, PublishDependencies
from worker.publishing.workspace import discard_abandoned, open_publish_workspace
from worker.subprocesses.token_pipe import operator_token

_IDLE_SECONDS: Final = 1.0
_TIDY_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 15.0

logger = structlog.get_logger(__name__)


class Publisher:
    """Runs one publication at a time: :meth:`run_next` in the caller's thread, or :meth:`start` in its own thread."""

    def __init__(
        self, dependencies: PublishDependencies, owner: str, *, is_draining: Callable[[], bool] = lambda: False
    ) -> None:
        self._dependencies = dependencies
        self._owner = owner
        self._is_draining = is_draining
        self._directory = dependencies.settings.publishing_dir
        self._stopping = threading.Event()
        self._tidied_at = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)

    def start(self) -> None:
        """Start to publish; return at once."""
        self._thread.start()

    def stop(self) -> None:
        """Hand back the running publication, and wait for that. Do nothing if it was never started."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def run_next(self) -> Outcome | None:
        """Claim a publication and run one attempt of it; return its outcome, or None if there was none to claim.

        Raises:
            Unavailable: the database did not answer the claim.
        """
        # Read before the claim: the lease may have begun at any moment since.
        claimed_at = time.monotonic()
        claim = self._dependencies.leases.claim(self._owner)
        if claim is None:
            return None
        ids = {"publication_id": claim.publication_id, "job_id": claim.job_id, "fence": claim.fence}
        with structlog.contextvars.bound_contextvars(**ids, attempt=claim.attempt):
            logger.info("publication_claimed", owner=self._owner, repo=claim.repo)
            outcome = self._run(claim, claimed_at)
            logger.info("publication_attempt_ended", outcome=outcome)
        return outcome

    def _run(self, claim: PublicationClaim, claimed_at: float) -> Outcome:
        with (
            ClaimHeartbeat.of(
                self._dependencies.leases, claim, self._dependencies.settings, claimed_at=claimed_at
            ) as heartbeat,
            hold_process_lock(self._directory, claim.publication_id, claim.fence),
        ):
            workspace = open_publish_workspace(self._directory, claim.publication_id, claim.fence)
            attempt = PublishAttempt(
                dependencies=self._dependencies,
                claim=claim,
                heartbeat=heartbeat,
                workspace=workspace,
                must_yield=self._must_stop,
            )
            return attempt.settle(attempt.run())

    def _work(self) -> None:
        while not self._must_stop():
            busy = False
            try:
                busy = self.run_next() is not None
                self._tidy()
            except Unavailable:
                logger.warning("publication_claim_failed", reason="the database does not answer")
            except Exception:  # one bad publication must not end this thread; its lease runs out
                logger.exception("publication_attempt_crashed")
            # After an attempt, the next publication may wait already: no pause then.
            if not busy:
                self._stopping.wait(_IDLE_SECONDS)

    def _must_stop(self) -> bool:
        return self._stopping.is_set() or self._is_draining()

    def _tidy(self) -> None:
        if time.monotonic() - self._tidied_at < _TIDY_SECONDS:
            return
        self._tidied_at = time.monotonic()
        dependencies = self._dependencies
        lease = dependencies.settings.lease_seconds
        discard_abandoned(self._directory, dependencies.leases.unfinished, older_than_seconds=lease)


def hub_tokens(
    credentials: CredentialService, environment: Mapping[str, str]
) -> Callable[[PublicationClaim], str | None]:
    """Return a function that gives a publication's token: of the credential that it names, else the operator's."""

    def token_for(claim: PublicationClaim) -> str | None:
        if claim.credential_id is None:
            return operator_token(environment)
        return credentials.hub_token(claim.credential_id, tenant=claim.tenant)

    return token_for
