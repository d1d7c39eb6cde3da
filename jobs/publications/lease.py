"""The worker's operations on a publication: claim, heartbeat and fenced writes.

As for jobs, every write has the claim's fence in its WHERE, a write that changes no row returns False, and all times
are of the database's clock. When the Hub refuses an attempt for now, another one follows, each time later.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.orm import Session

from jobs.kit.attempt_limit import is_last_attempt
from jobs.kit.errors import JobProblem
from jobs.kit.leases import HeartbeatResult
from jobs.kit.states import PublicationStatus
from jobs.publications.problems import shown
from jobs.publications.queueing import CHECKPOINT_PREFIX
from jobs.repository import publications
from jobs.repository.database import Database
from jobs.repository.models import Publication
from jobs.settings import Settings

_LONGEST_DELAY_SECONDS: Final = 600.0
# A Hub that asks for a longer time than this does not delay a publication further.
_LONGEST_RETRY_AFTER_SECONDS: Final = 3600.0
_JITTER: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One file to publish: its path in the repository, and its digest in the artifact store.

    ``artifact_fence``: the fence of the row, which is part of the path of a file of the first release.
    """

    path: str
    bytes: int
    sha256: str
    artifact_fence: int


@dataclass(frozen=True, kw_only=True)
class PublicationClaim:
    """The right to run one attempt of one publication."""

    publication_id: str
    job_id: str
    fence: int
    attempt: int
    max_attempts: int
    tenant: str
    repo: str
    private: bool
    revision: str
    credential_id: str | None
    manifest_sha256: str
    files: tuple[PublishedFile, ...]

    @property
    def bytes(self) -> int:
        """The size of the whole checkpoint."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Commit:
    """The commit of the checkpoint. ``created_repo``: this publication made the repository."""

    sha: str
    url: str
    created_repo: bool = False


class PublicationLeases:
    """Claims publications for workers and writes their results. Methods are transactions; all raise Unavailable."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def claim(self, owner: str) -> PublicationClaim | None:
        """Claim the publication that has been available longest: fence + 1, attempt + 1, a new lease."""
        with self._database.transaction() as session:
            row = publications.claim_oldest(session, owner, self._settings.lease_seconds)
            return None if row is None else _claim(session, row)

    def heartbeat(self, claim: PublicationClaim) -> HeartbeatResult:
        """Renew the lease of a claim."""
        with self._database.transaction() as session:
            lease = self._settings.lease_seconds
            return HeartbeatResult(ok=publications.renew(session, claim.publication_id, claim.fence, lease))

    def record_progress(self, claim: PublicationClaim, done: int, total: int) -> bool:
        """Record how many bytes of the checkpoint the Hub has. The caller limits the rate."""
        with self._database.transaction() as session:
            values = {"bytes_done": min(done, total), "bytes_total": total}
            return publications.update_fenced(session, claim.publication_id, claim.fence, values)

    def succeed(self, claim: PublicationClaim, commit: Commit) -> bool:
        """End the publication as succeeded: the commit is on the Hub."""
        values = {"commit_sha": commit.sha, "commit_url": commit.url, "created_repo": commit.created_repo}
        whole = {"bytes_done": claim.bytes, "bytes_total": claim.bytes, "error": None}
        return self._finish(claim, PublicationStatus.SUCCEEDED, values | whole)

    def fail(self, claim: PublicationClaim, problem: JobProblem) -> bool:
        """End the publication as failed, because another attempt would not help."""
        return self._finish(claim, PublicationStatus.FAILED, {"error": shown(problem, claim.publication_id)})

    def postpone(self, claim: PublicationClaim, problem: JobProblem, *, retry_after: float = 0.0) -> bool:
        """Queue another attempt, not before ``retry_after`` seconds; after the last attempt fail with ``problem``."""
        if is_last_attempt(claim):
            return self.fail(claim, problem)
        with self._database.transaction() as session:
            return publications.requeue(
                session,
                claim.publication_id,
                claim.fence,
                delay_seconds=self._delay(claim.attempt, retry_after),
                error=shown(problem, claim.publication_id),
            )

    def release(self, claim: PublicationClaim) -> bool:
        """Return the publication to the queue at once, because this worker stops; the attempt does not count."""
        with self._database.transaction() as session:
            return publications.requeue(session, claim.publication_id, claim.fence, delay_seconds=0.0, counts=False)

    def unfinished(self, publication_ids: Collection[str]) -> frozenset[str]:
        """Return those publications that are not over: their files may still be needed."""
        with self._database.transaction() as session:
            return publications.unfinished(session, publication_ids)

    def _finish(self, claim: PublicationClaim, status: PublicationStatus, values: dict[str, Any]) -> bool:
        with self._database.transaction() as session:
            return publications.finish(session, claim.publication_id, claim.fence, status, values)

    def _delay(self, attempt: int, retry_after: float) -> float:
        """Return the delay: doubled with each attempt, plus jitter so that publications do not all return at once."""
        backoff = min(self._settings.publish_retry_seconds * 2.0 ** (attempt - 1), _LONGEST_DELAY_SECONDS)
        least = max(backoff, min(retry_after, _LONGEST_RETRY_AFTER_SECONDS))
        return least * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311 — nobody gains from guessing it


def _claim(session: Session, row: Publication) -> PublicationClaim:
    artifacts = publications.artifacts_of(session, row.job_id, CHECKPOINT_PREFIX)
    return PublicationClaim(
        publication_id=row.id,
        job_id=row.job_id,
        fence=row.fence,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        tenant=row.tenant,
        repo=row.repo,
        private=row.private,
        revision=row.revision,
        credential_id=row.credential_id,
        manifest_sha256=row.manifest_sha256,
        files=tuple(
            PublishedFile(
                # The files of the checkpoint are at the top of the repository.
                path=file.path.removeprefix(CHECKPOINT_PREFIX),
                bytes=file.bytes,
                sha256=file.sha256,
                artifact_fence=file.fence,
            )
            for file in artifacts
        ),
    )
