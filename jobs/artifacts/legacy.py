"""Files of the first release: ``<root>/<job_id>/<fence>/<path>``. They are read and deleted, never written."""

import contextlib
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from jobs.artifacts.local import read_file
from jobs.kit.ids import is_id


class LegacyFiles:
    """The files below the data directory in the layout of the first release, with every kind of store."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, job_id: str, fence: int, path: str) -> Path | None:
        """Return the file of one row; None if it is missing, or if the row points outside its attempt's directory."""
        # Resolved before the check: a path with ".." or a link must not lead out of the directory.
        base = (self._job_dir(job_id) / str(int(fence))).resolve()
        candidate = (base / path).resolve()
        if PurePosixPath(path).is_absolute() or not candidate.is_relative_to(base) or not candidate.is_file():
            return None
        return candidate

    @staticmethod
    def read(path: Path, *, start: int, length: int) -> Iterator[bytes]:
        """Yield a part of a file that :meth:`find` returned, like ``ArtifactStore.read``."""
        return read_file(path, start=start, length=length)

    def jobs(self, before: datetime) -> Iterator[str]:
        """Yield, in ascending order, the ids of jobs with files here that nothing was published to since ``before``."""
        for path in sorted(self._root.glob("job_*")):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                if is_id(path.name) and datetime.fromtimestamp(path.stat().st_mtime, UTC) < before:
                    yield path.name

    def delete(self, job_id: str) -> None:
        """Remove every file of the job. A job without files is no error."""
        shutil.rmtree(self._job_dir(job_id), ignore_errors=True)

    def _job_dir(self, job_id: str) -> Path:
        if not is_id(job_id):
            raise ValueError("this is not an id of this service, and must not become a path")
        return self._root / job_id
