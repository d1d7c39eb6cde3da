"""Retention and garbage collection, in a thread of the sweeper: listing a large store takes longer than a lease."""

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from jobs.kit.errors import Unavailable
from jobs.repository.database import Database
from jobs.retention.collector import Collected
from jobs.retention.downloads import discard_downloads
from jobs.retention.expiry import Expired
from jobs.retention.housekeeping import Housekeeping
from jobs.settings import Settings

_LOOK_SECONDS: Final = 60.0
_JOIN_SECONDS: Final = 5.0

logger = structlog.get_logger(__name__)


class BackgroundCollector:
    """Checks once a minute if a round is due. One of all workers then begins it; downloads belong to each machine."""

    def __init__(self, database_url: str, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database_url = database_url
        self._settings = settings
        self._clock = clock
        self._next_look = clock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Begin a round if one is due; return at once."""
        if self._clock() < self._next_look or (self._thread is not None and self._thread.is_alive()):
            return
        self._next_look = self._clock() + _LOOK_SECONDS
        self._thread = threading.Thread(target=self._run, name="garbage-collector", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End a running round after its current blob or batch of rows."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        database = Database(self._database_url, pool_size=1)
        try:
            self._discard_downloads()
            # After the downloads, which do not need the database: they are removed also while it is down.
            done = Housekeeping.of(database, self._settings, stopped=self._stopping.is_set).run_if_due()
            if done is not None:
                _log_expired(done.expired)
                _log_collected(done.collected)
        except Unavailable as error:
            logger.warning("garbage_collection_failed", reason=error.detail)
        except Exception:  # the end of the thread: log it here, and try again in the next round
            logger.exception("garbage_collection_failed")
        finally:
            database.close()

    def _discard_downloads(self) -> None:
        keep = self._settings.retention_downloads_seconds
        discarded = discard_downloads(*self._settings.download_caches, older_than_seconds=keep)
        if discarded.downloads:
            logger.info("downloads_discarded", downloads=discarded.downloads, bytes=discarded.bytes)


def _log_expired(expired: tuple[Expired, ...]) -> None:
    for each in expired:
        if each.deleted is not None and each.deleted.rows:
            logger.info("rows_expired", what=each.rule, rows=each.deleted.rows, bytes=each.deleted.bytes)


def _log_collected(collected: Collected | None) -> None:
    if collected is None:
        return
    logger.info(
        "garbage_collected",
        blobs=collected.blobs,
        bytes=collected.bytes,
        incomplete=collected.incomplete,
        legacy=collected.legacy,
    )
    for file in collected.missing:
        # A published file that the store does not have any more: the operator has to know.
        logger.error("artifact_lost", job_id=file.job_id, artifact_id=file.artifact_id, path=file.path)
