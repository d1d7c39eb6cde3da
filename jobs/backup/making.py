"""Making a backup while the service runs.

No garbage is collected from before the snapshot until the last file is copied. Rows may be deleted meanwhile, by
retention or by a user; their bytes stay until the backup has them. So the dump comes first, of one moment, and the
files after it: each file that the dump names was whole when its row was written, is never changed, and still exists.
The other order would miss the files of jobs that succeed between the two.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sqlalchemy.exc import DBAPIError, ProgrammingError

from jobs.artifacts import ArtifactStore, DamagedBlob, LegacyFiles, LocalStore, open_store
from jobs.artifacts.manifest import hash_file, ignore_bytes
from jobs.backup import programs
from jobs.backup.layout import Description, Layout
from jobs.credentials import key_file
from jobs.kit.errors import InstallationError, Unavailable
from jobs.repository import backup, blobs
from jobs.repository.backup import NamedFile, Snapshot
from jobs.repository.database import Database
from jobs.settings import Settings

_PATIENCE_SECONDS: Final = 900.0
_LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a backup contains. ``fetched``: files that an earlier backup in the same directory did not have.

    ``missing``: files that rows name and that the store does not have, or has damaged.
    """

    description: Description
    fetched: int
    missing: tuple[NamedFile, ...]


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A backup of one service into one directory."""

    database: Database
    settings: Settings
    layout: Layout
    with_files: bool = True
    patience_seconds: float = _PATIENCE_SECONDS
    say: Callable[[str], None] = lambda _: None

    def make(self) -> Made:
        """Write the dump, the files, the key, and last ``backup.json``. An earlier backup in the directory is replaced.

        Raises:
            InstallationError: no pg_dump fits, or it failed, or the database is of another release.
            Unavailable: the database or the store does not answer, or garbage collection does not end in time.
            OSError: the directory can not be written.
        """
        # Only the owner may read it: it holds the key and every job.
        self.layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.layout.dump.with_suffix(".dump.partial")
        try:
            with self._files_stay():
                taken = self._dump(draft)
                fetched, missing = self._copy_files(taken) if self.with_files else (0, ())
        except ProgrammingError as error:
            raise InstallationError(
                "The database's tables are not those of this release. Back it up with its own release, or migrate "
                "it first: alembic upgrade head."
            ) from error
        except DBAPIError as error:
            raise Unavailable from error
        has_key = self._copy_key()
        draft.replace(self.layout.dump)
        os.sync()  # everything that the description refers to must be on the disk before the description is
        description = Description(
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            revision=taken.revision,
            server_version=taken.server_version,
            files=len(taken.files) - len(missing) if self.with_files else None,
            bytes=sum(file.bytes for file in taken.files) if self.with_files else 0,
            has_key=has_key,
        )
        self.layout.describe(description)
        # Last, so that a backup that fails before this point removes no file of the earlier one.
        self._forget_others(taken)
        return Made(description=description, fetched=fetched, missing=tuple(missing))

    @contextmanager
    def _files_stay(self) -> Iterator[None]:
        """Prevent garbage collection for the block. Raises: Unavailable: another process collects for too long."""
        deadline = time.monotonic() + self.patience_seconds
        while True:
            with blobs.collecting_alone(self.database.engine) as alone:
                if alone:
                    yield
                    return
            if time.monotonic() > deadline:
                raise Unavailable("Another process collects garbage or makes a backup. Repeat this when it has ended.")
            self.say("waiting for a collection of garbage to end")
            time.sleep(_LOOK_SECONDS)

    def _dump(self, target: Path) -> Snapshot:
        with backup.snapshot(self.database.engine) as taken:
            program = programs.programs_for(taken.server_version) / "pg_dump"
            self.say(f"dumping the database with {program}")
            shape = ("--format=custom", "--no-owner", "--no-privileges")
            programs.run(program, self.database, *shape, f"--snapshot={taken.id}", f"--file={target}")
        return taken

    def _copy_files(self, taken: Snapshot) -> tuple[int, list[NamedFile]]:
        """Copy the files. Return how many were copied, and those that could not be."""
        self.say(f"copying {len(taken.files)} files")
        source, legacy = open_store(self.settings), LegacyFiles(self.settings.artifacts_dir)
        fetched, missing = 0, []
        for file in taken.files:
            # An earlier backup in this directory has it already.
            if self.layout.store.size(file.sha256) == file.bytes:
                continue
            try:
                _bring(file, source, legacy, self.layout.store)
                fetched += 1
            except (FileNotFoundError, DamagedBlob):
                missing.append(file)
        return fetched, missing

    def _copy_key(self) -> bool:
        """Copy the key, and return True, unless the operator stores it elsewhere or no credential was ever stored."""
        # The key of an earlier backup must not stay beside a database that does not use it.
        self.layout.key.unlink(missing_ok=True)
        source = key_file(self.settings)
        if self.settings.secret_key is not None or not source.is_file():
            return False
        shutil.copyfile(source, self.layout.key)
        self.layout.key.chmod(0o600)
        return True

    def _forget_others(self, taken: Snapshot) -> None:
        """Remove files that only an earlier backup in this directory needed."""
        if not self.with_files:
            return
        needed = {file.sha256 for file in taken.files}
        for blob in list(self.layout.store.blobs()):
            if blob.sha256 not in needed:
                self.layout.store.delete(blob.sha256)


def _bring(file: NamedFile, source: ArtifactStore, legacy: LegacyFiles, target: LocalStore) -> None:
    """Copy one file to its place and verify it. Raises: FileNotFoundError, DamagedBlob."""
    path, partial = target.path(file.sha256), target.root / "incoming" / file.sha256
    for directory in (path.parent, partial.parent):
        directory.mkdir(parents=True, exist_ok=True)
    old = legacy.find(file.job_id, file.fence, file.path)
    if old is None:
        source.fetch(file.sha256, partial)
    else:
        partial.unlink(missing_ok=True)
        shutil.copyfile(old, partial)
        if hash_file(partial, ignore_bytes)[1] != file.sha256:
            partial.unlink()
            raise DamagedBlob("the content of a published file does not match its row")
    partial.replace(path)


def require_database(settings: Settings) -> None:
    """Check that there is a database to back up. Raises: InstallationError: there is none."""
    if not (settings.data_dir / "postgres").is_dir():
        raise InstallationError(
            f"QUANTRY_DATABASE_URL is not set, and {settings.data_dir} has no database. Set it, or name the "
            "service's data directory (QUANTRY_DATA_DIR, or --data-dir)."
        )
