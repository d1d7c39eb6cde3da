"""The views of publications."""

from typing import Annotated, Any, Literal

from pydantic import Field

from jobs.kit.documents import JobProblemView
from jobs.kit.states import PublicationStatus
from jobs.kit.views import Described, Timestamp, View
from jobs.repository.models import Publication


class BytesView(View):
    """How much of the checkpoint is on the Hub."""

    bytes_done: Annotated[int, Field(examples=[1000000])]
    """The bytes that the Hub has."""
    bytes_total: Annotated[int, Field(examples=[173000000])]
    """All bytes. 0 until the first attempt has checked."""


class CommitView(View):
    """The commit that holds the checkpoint."""

    sha: Annotated[str, Field(examples=["0123456789abcdef0123456789abcdef01234567"])]
    """Its id."""
    url: Annotated[str, Field(examples=["https://huggingface.co/me/model/commit/0123456"])]
    """Its address on the Hub."""


class PublicationView(View):
    """A publication. ``version`` is that of the row, for the ETag; the JSON lacks it."""

    id: Annotated[str, Field(examples=["pub_01"])]
    """Its id."""
    object: Literal["publication"] = "publication"
    """What this is."""
    job_id: Annotated[str, Field(examples=["job_01"])]
    """Its job."""
    status: PublicationStatus
    """Its state."""
    is_terminal: bool
    """Whether it is over: only a retry changes it."""
    repo: Annotated[str, Field(examples=["me/SmolLM2-135M-w4a16"])]
    """The repository on the Hub."""
    private: Annotated[bool, Field(examples=[True])]
    """Whether a new repository is private."""
    revision: Annotated[str, Field(examples=["main"])]
    """The branch."""
    attempt: Annotated[int, Field(examples=[1])]
    """The number of its attempts."""
    progress: BytesView
    """How much of the checkpoint is on the Hub."""
    commit: CommitView | None
    """The commit that holds the checkpoint, once it has succeeded."""
    error: Annotated[dict[str, Any], Described(JobProblemView)] | None
    """Why it failed."""
    last_error: Annotated[dict[str, Any], Described(JobProblemView)] | None
    """Why its latest attempt is followed by another."""
    created_at: Timestamp
    """When it was accepted."""
    started_at: Timestamp | None
    """When its first attempt began."""
    finished_at: Timestamp | None
    """When it ended."""
    next_attempt_at: Timestamp | None
    """When it is tried again. Null unless it waits for that."""
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
