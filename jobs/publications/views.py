"""The views of publications."""

from typing import Annotated, Any, Literal

from pydantic import Field

from jobs.kit.states import PublicationStatus
from jobs.kit.views import Timestamp, View
from jobs.repository.models import Publication


class BytesView(View):
    """How much of the checkpoint is on the Hub. Both are 0 until the first attempt has checked."""

    bytes_done: int
    bytes_total: int


class CommitView(View):
    """The commit that holds the checkpoint."""

    sha: str
    url: str


class PublicationView(View):
    """A publication. ``error``: why it failed; ``last_error``: why its latest attempt is followed by another.

    ``next_attempt_at`` is set while it waits for that. ``version`` is that of the row, for the ETag; the JSON lacks it.
    """

    id: str
    object: Literal["publication"] = "publication"
    job_id: str
    status: PublicationStatus
    is_terminal: bool
    repo: str
    private: bool
    revision: str
    attempt: int
    progress: BytesView
    commit: CommitView | None
    error: dict[str, Any] | None
    last_error: dict[str, Any] | None
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    next_attempt_at: Timestamp | None
    version: Annotated[int, Field(exclude=True)] = 0

    @property
    def etag(self) -> str:
        """A strong validator."""
        return f'"{self.version}"'

    @property
    def path(self) -> str:
        """The path of the publication."""
        return f"/v1/publications/{self.id}"


def publication_view(row: Publication) -> PublicationView:
    """Return the view of a row."""
    status = PublicationStatus(row.status)
    failed = status is PublicationStatus.FAILED
    # A first attempt waits for no delay, only for a worker.
    waits = status is PublicationStatus.QUEUED and row.attempt > 0
    landed = row.commit_sha is not None and row.commit_url is not None
    return PublicationView(
        id=row.id,
        job_id=row.job_id,
        status=status,
        is_terminal=status.is_terminal,
        repo=row.repo,
        private=row.private,
        revision=row.revision,
        attempt=row.attempt,
        progress=BytesView(bytes_done=row.bytes_done, bytes_total=row.bytes_total),
        commit=CommitView(sha=str(row.commit_sha), url=str(row.commit_url)) if landed else None,
        error=row.error if failed else None,
        last_error=None if failed else row.error,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        next_attempt_at=row.available_at if waits else None,
        version=row.version,
    )
