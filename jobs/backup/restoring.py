"""Restoring a service from a backup: the files first, then the key, then all rows in one transaction.

In this order a row never names a file that is not there yet. Nothing is overwritten: the database must have no jobs.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from jobs.artifacts import open_store
from jobs.backup import programs
from jobs.backup.layout import Description, Layout
from jobs.credentials import key_file
from jobs.kit.errors import InstallationError, Unavailable
from jobs.repository import backup, migrate
from jobs.repository.database import Database
from jobs.retention.collector import Collector, MissingFile
from jobs.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Restored:
    """The result of a restore. ``missing``: files that jobs have and that the store does not have."""

    jobs: int
    files: int
    missing: tuple[MissingFile, ...]


@dataclass(frozen=True, kw_only=True)
class Restore:
    """A restore into an empty service that does not run."""

    database: Database
    settings: Settings
    layout: Layout
    say: Callable[[str], None] = lambda _: None

    def make(self) -> Restored:
        """Restore the service.

        Raises:
            InstallationError: the directory is no backup, the service is not empty, or pg_restore failed.
            Unavailable: the database or the store does not answer.
            OSError: the store or the data directory can not be written.
        """
        description = self.layout.read()
        try:
            self._require_empty()
            files = self._put_files(description)
            self._put_key(description)
            self._put_rows()
        except DBAPIError as error:
            raise Unavailable from error
        with self.database.transaction() as session:
            backup.invalidate_claims(session)
            jobs = backup.count_jobs(session)
        # A dry run of the collector finds the rows without bytes, for example after a backup without files.
        found = Collector.of(self.database, self.settings, dry_run=True).run()
        return Restored(jobs=jobs, files=files, missing=() if found is None else found.missing)

    def _require_empty(self) -> None:
        table = backup.occupied(self.database.engine)
        if table is not None:
            raise InstallationError(
                f"The database is not empty: {table} has rows, which a restore would delete. Restore into an empty "
                "database (QUANTRY_DATABASE_URL) or a new data directory (QUANTRY_DATA_DIR, or --data-dir)."
            )

    def _put_files(self, description: Description) -> int:
        if description.files is None or not self.layout.blobs.is_dir():
            return 0
        self.say(f"putting {description.files} files into the artifact store")
        return len(open_store(self.settings).put(self.layout.blobs))

    def _put_key(self, description: Description) -> None:
        """Copy the key of stored credentials. Raises: InstallationError: there is another key already."""
        target = key_file(self.settings)
        if not description.has_key or self.settings.secret_key is not None:
            return
        if target.is_file() and target.read_bytes() != self.layout.key.read_bytes():
            raise InstallationError(
                f"{target} is another key than the backup's. Move it away: the database is empty, so no credential was "
                "encrypted with it."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.layout.key, target)
        target.chmod(0o600)

    def _put_rows(self) -> None:
        with self.database.engine.connect() as connection:
            version = backup.server_version(connection)
        program = programs.programs_for(version) / "pg_restore"
        self.say(f"restoring the database with {program}")
        # The dump creates the tables itself. These have no rows that matter: ``_require_empty`` has checked it.
        backup.drop_tables(self.database.engine)
        options = ("--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error")
        programs.run(program, self.database, *options, str(self.layout.dump))
        # The backup may be of an older release.
        migrate.upgrade(self.database)
