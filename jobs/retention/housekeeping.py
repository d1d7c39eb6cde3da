"""Housekeeping: one round of all removals, first expired rows, then bytes that no row names any more."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from jobs.repository import blobs
from jobs.repository.database import Database
from jobs.retention.collector import Collected, Collector
from jobs.retention.expiry import Expired, Expiry
from jobs.settings import Settings

EVERY_SECONDS: Final = 3600.0
_CHORE: Final = "garbage_collection"


@dataclass(frozen=True)
class HousekeepingResult:
    """What a round did, or would have done. ``collected`` is None when another process collects or backs up."""

    expired: tuple[Expired, ...]
    collected: Collected | None


@dataclass(frozen=True, kw_only=True)
class Housekeeping:
    """One round of housekeeping. Of all workers, one at a time makes it."""

    database: Database
    expiry: Expiry
    collector: Collector

    @classmethod
    def of(
        cls, database: Database, settings: Settings, *, dry_run: bool = False, stopped: Callable[[], bool] | None = None
    ) -> "Housekeeping":
        """Make the round that ``settings`` describe; ``stopped`` ends it early."""
        asked = stopped or (lambda: False)
        return cls(
            database=database,
            expiry=Expiry(database=database, settings=settings, dry_run=dry_run, stopped=asked),
            collector=Collector.of(database, settings, dry_run=dry_run, stopped=asked),
        )

    def run(self) -> HousekeepingResult:
        """Run a round now. Raises: Unavailable: the database or the store does not answer."""
        return HousekeepingResult(expired=self.expiry.run(), collected=self.collector.run())

    def run_if_due(self) -> HousekeepingResult | None:
        """Run a round, unless a process began one within the last hour. Raises: Unavailable."""
        with self.database.transaction() as session:
            due = blobs.claim_chore(session, _CHORE, EVERY_SECONDS)
        return self.run() if due else None
