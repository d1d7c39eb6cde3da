"""The commands ``python -m jobs.backup make DIR`` and ``python -m jobs.backup restore DIR``.

They use the database of QUANTRY_DATABASE_URL, or the embedded one of QUANTRY_DATA_DIR. ``make`` works whether or not
the service runs; ``restore`` needs a stopped one. Files come from, and go to, the store that the other settings name.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from jobs.backup.layout import Layout
from jobs.backup.making import Backup, require_database
from jobs.backup.restoring import Restore
from jobs.embedded import embedded_database
from jobs.embedded.locate import embedded_url
from jobs.kit.errors import QuantryError
from jobs.repository.database import Database
from jobs.settings import Settings, get_settings


def main(arguments: list[str] | None = None) -> int:
    """Run the command. The exit code is 1 when it failed, or when files are missing."""
    parser = argparse.ArgumentParser(prog="jobs.backup", description="Backs up a service, and restores it.")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="make a backup, also while the service runs")
    make.add_argument("directory", type=Path)
    make.add_argument("--no-files", action="store_true", help="the artifact store is backed up by other means")
    restore = commands.add_parser("restore", help="restore a backup into an empty service that does not run")
    restore.add_argument("directory", type=Path)
    options = parser.parse_args(arguments)
    layout = Layout(options.directory.expanduser().absolute())
    try:
        settings = get_settings()
        if options.command == "make":
            return _make(settings, layout, with_files=not options.no_files)
        return _restore(settings, layout)
    except ValidationError as error:
        return _fail("installation_error", "; ".join(each["msg"] for each in error.errors(include_url=False)))
    except QuantryError as error:
        return _fail(error.code, error.detail)
    except OSError as error:
        return _fail("os_error", f"{error}. Check the path, its permissions and the free space.")


def _make(settings: Settings, layout: Layout, *, with_files: bool) -> int:
    with _database_to_read(settings) as database:
        made = Backup(database=database, settings=settings, layout=layout, with_files=with_files, say=_say).make()
    described = made.description
    files = (
        "the files are not in it" if described.files is None else f"{described.files} files, {described.bytes} bytes"
    )
    sys.stdout.write(f"backup of {described.made_at} in {layout.root}: {files}, {made.fetched} of them new\n")
    if not described.has_key:
        sys.stdout.write("It has no key. If you set QUANTRY_SECRET_KEY, store that key in a safe place.\n")
    for file in made.missing:
        sys.stdout.write(f"missing {file.sha256} of {file.job_id}: {file.path}\n")
    return 1 if made.missing else 0


def _restore(settings: Settings, layout: Layout) -> int:
    # First, so that a wrong directory is reported before a database is started.
    layout.read()
    with _database_to_write(settings) as database:
        restored = Restore(database=database, settings=settings, layout=layout, say=_say).make()
    sys.stdout.write(f"restored {restored.jobs} jobs and {restored.files} files from {layout.root}\n")
    for file in restored.missing:
        sys.stdout.write(f"missing {file.sha256} of {file.job_id}: {file.path} ({file.artifact_id})\n")
    return 1 if restored.missing else 0


@contextmanager
def _database_to_read(settings: Settings) -> Iterator[Database]:
    """Open the configured database, that of the service that runs here, or that of a stopped one."""
    running = None if settings.database_url is not None else embedded_url(settings.data_dir)
    if running is not None:
        with _opened(running) as database:
            yield database
        return
    if settings.database_url is None:
        require_database(settings)
    with _database_to_write(settings) as database:
        yield database


@contextmanager
def _database_to_write(settings: Settings) -> Iterator[Database]:
    """Open the configured database, or the embedded one, which no other process may use."""
    if settings.database_url is not None:
        with _opened(settings.database_url.get_secret_value()) as database:
            yield database
        return
    with embedded_database(settings) as url, _opened(url) as database:
        yield database


@contextmanager
def _opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def _say(message: str) -> None:
    sys.stderr.write(f"{message} …\n")


def _fail(code: str, detail: str) -> int:
    sys.stderr.write(f"error [{code}]: {detail}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
