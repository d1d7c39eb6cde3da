"""The command ``python -m jobs.gc [--dry-run]``: remove what expired or is not needed any more, and report it.

Workers do the same every hour. The command does it now, on the database of QUANTRY_DATABASE_URL, or on the embedded one
of the service that runs on QUANTRY_DATA_DIR.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from jobs.embedded.locate import database_url
from jobs.kit.errors import QuantryError
from jobs.repository import schema
from jobs.repository.database import Database
from jobs.retention.collector import Collected
from jobs.retention.downloads import Discarded, discard_downloads
from jobs.retention.housekeeping import Housekeeping, HousekeepingResult
from jobs.settings import Settings, get_settings

Row = tuple[str, str, str]


def main(arguments: list[str] | None = None) -> int:
    """Run one round. Exit code 1: rows without bytes were found; 75: another process collects or backs up."""
    parser = argparse.ArgumentParser(prog="jobs.gc", description="Removes what expired or is not needed any more.")
    parser.add_argument("--dry-run", action="store_true", help="report what would be removed, and remove nothing")
    options = parser.parse_args(arguments)
    try:
        done, discarded = _run(get_settings(), dry_run=options.dry_run)
    except ValidationError as error:
        return _fail("installation_error", "; ".join(each["msg"] for each in error.errors(include_url=False)))
    except QuantryError as error:
        return _fail(error.code, error.detail)
    sys.stdout.write(table(("would remove" if options.dry_run else "removed"), done, discarded))
    if done.collected is None:
        sys.stderr.write("No files were removed: another process collects them, or makes a backup.\n")
        return os.EX_TEMPFAIL
    for file in done.collected.missing:
        sys.stdout.write(f"missing {file.sha256} of {file.job_id}: {file.path} ({file.artifact_id})\n")
    return 1 if done.collected.missing else 0


def table(verb: str, done: HousekeepingResult, discarded: Discarded) -> str:
    """Return the report: a line for each kind of thing, with its number and bytes."""
    rows = [(verb, "count", "bytes"), *_expired(done), *_collected(done.collected)]
    rows.append(("interrupted downloads", str(discarded.downloads), str(discarded.bytes)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{name:<{widths[0]}}  {count:>{widths[1]}}  {size:>{widths[2]}}".rstrip() for name, count, size in rows]
    return "\n".join(lines) + "\n"


def _run(settings: Settings, *, dry_run: bool) -> tuple[HousekeepingResult, Discarded]:
    database = Database(database_url(settings), pool_size=1)
    try:
        with database.transaction() as session:
            # A database that lacks tables of this release is not touched.
            schema.require_current(session)
        done = Housekeeping.of(database, settings, dry_run=dry_run).run()
    finally:
        database.close()
    keep = settings.retention_downloads_seconds
    return done, discard_downloads(*settings.download_caches, older_than_seconds=keep, dry_run=dry_run)


def _expired(done: HousekeepingResult) -> Iterator[Row]:
    for each in done.expired:
        if each.deleted is None:
            yield f"expired {each.rule}", "not deleted (retention 0)", ""
        else:
            yield f"expired {each.rule}", str(each.deleted.rows), str(each.deleted.bytes) if each.deleted.bytes else ""


def _collected(collected: Collected | None) -> Sequence[Row]:
    if collected is None:
        return []
    return [
        ("unused files", str(collected.blobs), str(collected.bytes)),
        ("interrupted uploads", str(collected.incomplete), ""),
        ("jobs in the old file layout", str(collected.legacy), ""),
    ]


def _fail(code: str, detail: str) -> int:
    sys.stderr.write(f"error [{code}]: {detail}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
