"""``publish.json``: what to publish, and where. It holds no secret, because it stays on the disk during the upload."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class UploadedFile(BaseModel):
    """One file: its path in the repository, its place on this machine, its size and its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    source: Path
    bytes: int
    sha256: str


class PublishFile(BaseModel):
    """The request of an upload. ``resumed``: an earlier attempt may have committed without learning it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent_pid: int
    publication_id: str
    job_id: str
    repo: str
    private: bool
    revision: str
    manifest_sha256: str
    resumed: bool
    files: tuple[UploadedFile, ...]

    @property
    def bytes(self) -> int:
        """The size of the whole checkpoint in bytes."""
        return sum(file.bytes for file in self.files)
