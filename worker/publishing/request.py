"""``publish.json``: what to publish, and where. Holds no secret: it lies on the disk as long as the upload runs."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class UploadedFile(BaseModel):
    """One file: where it goes in the repository, where it is, and what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    source: Path
    bytes: int
    sha256: str


class PublishFile(BaseModel):
    """Everything the upload is told. ``resumed``: an earlier attempt may have committed without knowing it."""

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
        """The size of the whole checkpoint."""
        return sum(file.bytes for file in self.files)
