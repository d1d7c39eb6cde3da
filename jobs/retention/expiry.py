"""Expiry: removing rows of finished jobs that are older than their retention time, batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy.orm import Session

from jobs.repository import retention
from jobs.repository.database import Database
from jobs.repository.retention import Deleted
from jobs.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule for one kind of rows. ``keep_seconds`` of 0 keeps them for ever; ``batch``: how many at a time."""

    name: str
    keep_seconds: Callable[[Settings], float]
    remove: Callable[[Session, float, int, datetime | None], Deleted]
    count: Callable[[Session, float], Deleted]
    batch: int


RULES: Final = (
    # Few at a time: one statement deletes a job with all its rows, and a long job has tens of thousands of events.
    Rule(
        name="jobs",
        keep_seconds=lambda settings: settings.retention_jobs_seconds,
        remove=retention.delete_jobs,
        count=retention.count_jobs,
        batch=5,
    ),
    Rule(
        name="jobs' files",
        keep_seconds=lambda settings: settings.retention_artifacts_seconds,
        remove=retention.expire_files,
        count=retention.count_files,
        batch=200,
    ),
    Rule(
        name="events",
        keep_seconds=lambda settings: settings.retention_events_seconds,
        remove=retention.delete_events,
        count=retention.count_events,
        batch=2000,
    ),
    Rule(
        name="webhook deliveries",
        keep_seconds=lambda settings: settings.webhook_retention_seconds,
        remove=retention.delete_deliveries,
        count=retention.count_deliveries,
        batch=1000,
    ),
    Rule(
        name="idempotency keys",
        keep_seconds=lambda settings: settings.idempotency_seconds,
        remove=retention.delete_keys,
        count=retention.count_keys,
        batch=1000,
    ),
)
"""The rules in the order of their use. A new kind of rows that expires is one more entry."""


@dataclass(frozen=True)
class Expired:
    """What one rule removed, or would have removed; ``deleted`` is None where the operator keeps everything."""

    rule: str
    deleted: Deleted | None


@dataclass(frozen=True, kw_only=True)
class Expiry:
    """One use of all rules. ``stopped`` is called between batches. Several processes may do this at the same time."""

    database: Database
    settings: Settings
    rules: tuple[Rule, ...] = RULES
    dry_run: bool = False
    stopped: Callable[[], bool] = lambda: False

    def run(self) -> tuple[Expired, ...]:
        """Apply every rule; each batch is one short transaction. Raises: Unavailable."""
        return tuple(Expired(rule.name, self._apply(rule)) for rule in self.rules)

    def _apply(self, rule: Rule) -> Deleted | None:
        keep = rule.keep_seconds(self.settings)
        if keep <= 0:
            return None
        if self.dry_run:
            with self.database.transaction() as session:
                return rule.count(session, keep)
        deleted = Deleted(0)
        while not self.stopped():
            with self.database.transaction() as session:
                # One transaction for each batch, so that no lock is held for long.
                batch = rule.remove(session, keep, rule.batch, deleted.reached)
            if batch.rows == 0:
                break
            deleted = Deleted(deleted.rows + batch.rows, deleted.bytes + batch.bytes, batch.reached)
        return deleted
