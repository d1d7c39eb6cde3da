"""A published file: its row, and the place of its bytes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.artifacts import ArtifactStore, LegacyFiles
from jobs.job.rendering import artifact_view
from jobs.job.views import ArtifactView
from jobs.kit.errors import ArtifactNotFound
from jobs.repository.models import Artifact
from jobs.settings import Settings


@dataclass(frozen=True)
class ArtifactFile:
    """A row and its bytes: a blob of the store, or the file ``legacy`` of the first release."""

    view: ArtifactView
    store: ArtifactStore
    legacy: Path | None

    def require(self) -> None:
        """Check that the bytes exist. Raises: ArtifactNotFound: they are gone; StoreUnavailable: no answer."""
        if self.legacy is None and self.store.size(self.view.sha256) is None:
            raise ArtifactNotFound

    def read(self, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield a part of the bytes in chunks; the first chunk is read before this returns.

        Raises:
            ArtifactNotFound: the bytes are gone.
            StoreUnavailable: the store does not answer.
            jobs.artifacts.DamagedBlob: there are fewer bytes than the row says; possibly while iterating.
        """
        # The row's size, not the store's: a blob that is too short must be noticed.
        wanted = self.view.bytes - start if length is None else length
        try:
            if self.legacy is not None:
                return LegacyFiles.read(self.legacy, start=start, length=wanted)
            return self.store.read(self.view.sha256, start=start, length=wanted)
        except FileNotFoundError:
            raise ArtifactNotFound from None


class ArtifactFiles:
    """Finds the bytes of artifact rows."""

    def __init__(self, store: ArtifactStore, settings: Settings) -> None:
        self._store = store
        self._legacy = LegacyFiles(settings.artifacts_dir)

    def open(self, artifact: Artifact) -> ArtifactFile:
        """Return the row's file. Whether its bytes exist is only checked when they are read."""
        legacy = self._legacy.find(artifact.job_id, artifact.fence, artifact.path)
        return ArtifactFile(view=artifact_view(artifact), store=self._store, legacy=legacy)

    def forget(self, job_id: str) -> None:
        """Remove the first release's files of a job whose rows are gone. Blobs are left to ``jobs.gc``."""
        self._legacy.delete(job_id)
